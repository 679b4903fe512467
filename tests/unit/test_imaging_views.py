"""Which image of a series is the frontal radiograph, and what is said of the others."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom.dataset import Dataset

from node.errors import UnsuitableInput
from node.imaging.views import choose_radiograph
from node.manifest import RadiographContract
from tests.radiographs import radiograph

CONTRACT = RadiographContract(
    kind="radiograph",
    modalities=("CR", "DX"),
    min_pixels=32,
    max_aspect=2.0,
    refuse_view_positions=("LL", "RL"),
    refuse_image_types=("LOCALIZER",),
    refuse_body_parts=("HAND", "KNEE"),
    wanted="Send a frontal chest radiograph.",
)
SHADES = np.zeros((64, 48))


def view_code(meaning: str) -> list[Dataset]:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "1", "99TEST", meaning
    return [item]


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"modality": "DX"},
        {"ViewPosition": "AP"},
        {"ViewPosition": None, "BodyPartExamined": None, "orientation": None},
        {"ViewCodeSequence": view_code("postero-anterior")},
        {"orientation": ("F", "R")},
        {"photometric": "MONOCHROME1"},
        {"NumberOfFrames": 1},
    ],
)
def test_a_frontal_radiograph_is_taken(attributes: dict[str, object]) -> None:
    """Also where the header says little."""
    assert choose_radiograph(CONTRACT, [radiograph(SHADES, **attributes)]).index == 0


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"Modality": "MG"}, r"is not CR or DX \(Modality\)"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, r"screen save \(SOPClassUID\)"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.2"}, r"screen save \(SOPClassUID\)"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1.1"}, "raw detector data"),
        ({"photometric": "RGB"}, "picture in colour"),
        ({"NumberOfFrames": 2}, "several frames"),
        ({"ImageType": ["DERIVED", "PRIMARY", "LOCALIZER"]}, r"localizer image \(ImageType\)"),
        ({"BodyPartExamined": "HAND"}, r"shows the hand \(BodyPartExamined\)"),
        ({"BodyPartExamined": "knee "}, r"shows the knee \(BodyPartExamined\)"),
        ({"ViewPosition": "LL"}, r"lateral, oblique or decubitus view \(ViewPosition\)"),
        ({"ViewCodeSequence": view_code("left lateral")}, r"frontal view \(ViewCodeSequence\)"),
        ({"orientation": ("A", "F")}, r"lateral view \(PatientOrientation\)"),
        ({"Rows": 20}, "20 pixels across; the model needs 32"),
        ({"Rows": 100}, "too long and narrow"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(attributes: dict[str, object], reason: str) -> None:
    """Each clause has its own sentence, names the attribute, and gives the model's remedy."""
    with pytest.raises(UnsuitableInput, match=reason) as caught:
        choose_radiograph(CONTRACT, [radiograph(SHADES, **attributes)])
    assert caught.value.remedy == "Send a frontal chest radiograph."


def test_of_pa_and_lateral_the_pa_is_taken_and_the_other_named() -> None:
    """Whatever comes first, by number or in the list."""
    pa = radiograph(SHADES, InstanceNumber=2)
    lateral = radiograph(SHADES, InstanceNumber=1, ViewPosition="LL")
    for series, index in (([pa, lateral], 0), ([lateral, pa], 1)):
        chosen = choose_radiograph(CONTRACT, series)
        assert chosen.index == index
        [reason] = chosen.left_out
        assert reason.startswith("Instance 1 is a lateral")


def test_of_two_frontal_images_the_first_by_number_is_taken() -> None:
    """One image is one case; the other one is not forgotten silently."""
    series = [radiograph(SHADES, InstanceNumber=number) for number in (7, 3)]
    chosen = choose_radiograph(CONTRACT, series)
    assert chosen.index == 1
    assert chosen.left_out == (
        "Instance 7 is a further frontal image; one image is segmented per series",
    )


def test_a_refusal_names_every_image() -> None:
    """No instance that fits: the cause of each is told."""
    series = [
        radiograph(SHADES, InstanceNumber=1, ViewPosition="LL"),
        radiograph(SHADES, InstanceNumber=2, BodyPartExamined="HAND"),
    ]
    with pytest.raises(
        UnsuitableInput, match=r"Instance 1 is a lateral.*; Instance 2 shows the hand"
    ):
        choose_radiograph(CONTRACT, series)
    with pytest.raises(UnsuitableInput, match="no image"):
        choose_radiograph(CONTRACT, [])
