"""The input contract refuses in words, with the keyword and a remedy, before anything is done."""

from __future__ import annotations

import pytest
from pydicom.dataset import Dataset

from node.errors import UnsuitableInput
from node.imaging.suitability import require_suitable
from node.imaging.volume import series_geometry
from node.manifest import InputContract
from tests.phantoms import ct_series

CONTRACT = InputContract(
    modality="CT",
    min_slices=8,
    min_extent_mm=40,
    slice_spacing_mm=(0.5, 6),
    pixel_spacing_mm=(0.3, 5),
    refuse_image_types=("LOCALIZER",),
    refuse_body_parts=("HEAD",),
    wanted="Send an axial chest CT.",
)


def check(series: list[Dataset]) -> None:
    require_suitable(CONTRACT, series, series_geometry(series))


def test_a_chest_ct_is_taken() -> None:
    """The contract's own kind of series passes, with or without BodyPartExamined."""
    check(ct_series(slices=10, rows=8, columns=8))
    check(ct_series(slices=10, rows=8, columns=8, BodyPartExamined=None))


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"Modality": "PT"}, "Modality is not CT"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, r"LOCALIZER images \(ImageType\)"),
        ({"BodyPartExamined": "HEAD"}, r"shows the head \(BodyPartExamined\)"),
        ({"slices": 7}, "7 slices; the model needs 8"),
        ({"spacing_mm": (3, 4, 4)}, "covers 27 mm; the model needs 40 mm"),
        ({"spacing_mm": (7, 4, 4)}, "slice spacing is 7.00 mm; the model was made for 0.5 to 6"),
        ({"spacing_mm": (5, 5.5, 4)}, "PixelSpacing is 5.50 mm"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}, "not axial"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(attributes: dict[str, object], message: str) -> None:
    """Each clause of the contract has its own sentence, and the same remedy."""
    series = ct_series(**{"slices": 10, "rows": 8, "columns": 8, **attributes})
    if "ImageOrientationPatient" in attributes:
        for index, ds in enumerate(series):
            ds.ImagePositionPatient = [0, 5 * index, 0]
    with pytest.raises(UnsuitableInput, match=message) as caught:
        check(series)
    assert caught.value.remedy == "Send an axial chest CT."


def test_one_localizer_image_is_enough_to_refuse() -> None:
    """Every instance is asked, not only the first."""
    series = ct_series(slices=10, rows=8, columns=8)
    series[7].ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    with pytest.raises(UnsuitableInput, match="LOCALIZER"):
        check(series)
