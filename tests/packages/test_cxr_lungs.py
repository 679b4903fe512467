"""cxr_lungs on other hospitals' radiographs, on other parts of the body, on its held-out fifth."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from pydicom import dcmread

from node.errors import UnsuitableInput
from node.imaging.radiograph import radiograph_from
from node.imaging.views import choose_radiograph
from node.manifest import RadiographManifest, read_manifest
from node.packages import load_model
from node.radiographs import RadiographModel
from node.sdk import Radiograph
from node.training.recipe import load_recipe
from node.training.split import split_by_patient
from tests.phantoms import dice
from tests.radiographs import (
    CHEST_CR,
    LEG_CR,
    REPOSITORY,
    SHARED,
    projected_chest,
    radiograph,
    stored,
)

FOLDER = REPOSITORY / "models" / "cxr_lungs"
MONTGOMERY = REPOSITORY.parent / "shared" / "train" / "cxr_lungs_montgomery"
LEFT, RIGHT, LUNGS = 1, 2, 3

needs_samples = pytest.mark.skipif(not CHEST_CR.exists(), reason="the sample radiographs are away")


@pytest.fixture(scope="module")
def model() -> RadiographModel:
    model = load_model(FOLDER, threads=2, engine="torch")
    assert isinstance(model, RadiographModel)
    return model


@pytest.fixture(scope="module")
def chest() -> Radiograph:
    """The chest CR of the WG-04 set: lung metastases, MONOCHROME1, 15 bits, no usable spacing."""
    return radiograph_from(dcmread(CHEST_CR))


def assert_looks_like_lungs(labels: np.ndarray) -> None:
    """Two compact bodies side by side, of a plausible size, the patient's left on the right."""
    assert labels.shape[0] == 1
    left, right = (np.argwhere(labels[0] == side) for side in (LEFT, RIGHT))
    for side in (left, right):
        assert 0.05 < len(side) / labels.size < 0.3
        height, width = np.ptp(side, axis=0) + 1
        assert 1.0 < height / width < 4.0
        assert len(side) / (height * width) > 0.5
    assert left[:, 1].mean() > right[:, 1].mean()
    # One beside the other, at one height.
    assert abs(left[:, 0].mean() - right[:, 0].mean()) < 0.1 * labels.shape[1]


@needs_samples
def test_a_chest_of_another_hospital_keeps_its_shape(
    model: RadiographModel, chest: Radiograph
) -> None:
    """Masses the size of a fist do not tear holes into the lungs."""
    assert_looks_like_lungs(model.segment(chest).array)


@needs_samples
def test_the_polarity_of_the_file_does_not_matter(
    model: RadiographModel, chest: Radiograph
) -> None:
    """The same picture stored as MONOCHROME1 and as MONOCHROME2 gives the same lungs."""
    shades = (chest.array - chest.array.min()) / np.ptp(chest.array)
    one, two = (
        model.segment(radiograph_from(radiograph(shades, bits=15, photometric=photometric))).array
        for photometric in ("MONOCHROME1", "MONOCHROME2")
    )
    assert dice(one > 0, two > 0) > 0.999
    assert dice(one == LEFT, two == LEFT) > 0.999


@needs_samples
@pytest.mark.parametrize("toward", [("R", "F"), ("L", "H"), ("F", "L"), ("H", "R")])
def test_sides_are_the_patient_s_however_the_image_is_stored(
    model: RadiographModel, chest: Radiograph, toward: tuple[str, str]
) -> None:
    """Turned pixels with a PatientOrientation that says so give the same lungs, turned."""
    straight = model.segment(chest).array[0]
    turned = replace(chest, array=np.ascontiguousarray(stored(chest.array, toward)), toward=toward)
    found = model.segment(turned).array[0]
    for side in (LEFT, RIGHT):
        assert dice(found == side, stored(straight, toward) == side) > 0.99


@needs_samples
def test_without_orientation_no_side_is_claimed(model: RadiographModel, chest: Radiograph) -> None:
    """The same pixels, one segment."""
    with_sides = model.segment(chest).array
    without = model.segment(replace(chest, toward=None)).array
    assert set(np.unique(without)) == {0, LUNGS}
    np.testing.assert_array_equal(without > 0, with_sides > 0)


@needs_samples
def test_other_sizes_and_aspects_give_the_same_lungs(
    model: RadiographModel, chest: Radiograph
) -> None:
    """Half the matrix in one direction, told by PixelSpacing, changes next to nothing."""
    full = model.segment(chest).array
    half = replace(chest, array=chest.array[:, ::2], pixel_spacing_mm=(0.2, 0.4))
    assert dice(model.segment(half).array == LEFT, full[:, :, ::2] == LEFT) > 0.98


@needs_samples
def test_a_leg_is_refused_by_its_header_and_empty_without_it(model: RadiographModel) -> None:
    """BodyPartExamined says EXTREMITY; the network finds nothing in it either."""
    leg = dcmread(LEG_CR)
    with pytest.raises(UnsuitableInput, match="shows the extremity"):
        choose_radiograph(model.manifest.input, [leg])
    assert not model.segment(radiograph_from(leg)).array.any()


@pytest.mark.skipif(not SHARED.exists(), reason="the samples are away")
@pytest.mark.parametrize(
    "name",
    [
        "wg04_modalities/XA1_J2KR",
        "wg04_modalities/NM1_J2KR",
        "seg_sr_highdicom/dx_image.dcm",
    ],
)
def test_what_is_no_chest_has_no_lungs(model: RadiographModel, name: str) -> None:
    """Vessels of a head, a bone scan and a dog from the side: empty, header set aside."""
    assert not model.segment(radiograph_from(dcmread(SHARED / name))).array.any()


@needs_samples
def test_a_mammogram_is_refused() -> None:
    """The network would find something in it (MODEL_CARD.md), so the contract has to hold."""
    mammogram = dcmread(SHARED / "wg04_modalities" / "MG1_J2KI", stop_before_pixels=True)
    manifest = read_manifest(FOLDER)
    assert isinstance(manifest, RadiographManifest)
    for modality in ("MG", "CR"):
        mammogram.Modality = modality
        with pytest.raises(UnsuitableInput, match=r"is not CR or DX|screen save"):
            choose_radiograph(manifest.input, [mammogram])


def test_a_projected_ct_is_a_chest(model: RadiographModel) -> None:
    """The demo CT seen from the front: lungs on either side of something denser."""
    shades = projected_chest()
    found = model.segment(radiograph_from(radiograph(shades))).array
    assert_looks_like_lungs(found)
    lung, between = [], []
    for row, labels in zip(shades, found[0], strict=True):
        left, right = np.flatnonzero(labels == LEFT), np.flatnonzero(labels == RIGHT)
        if len(left) and len(right):
            lung += row[labels > 0].tolist()
            between += row[right.max() + 1 : left.min()].tolist()
    assert len(between) > 0.05 * len(lung)
    assert np.mean(lung) < 0.75 * np.mean(between)


@pytest.mark.skipif(not MONTGOMERY.exists(), reason="the training images are away")
def test_the_held_out_fifth_is_found_as_the_readers_drew_it(model: RadiographModel) -> None:
    """Patients that no sample came from, on the images' own grid: mean Dice, 5th percentile."""
    recipe = load_recipe(FOLDER)
    cases = recipe.read_cases(MONTGOMERY, model.manifest)
    held_out = {case.patient for case in split_by_patient(cases).validation}
    values, sides = [], []
    examples: Iterator = recipe.examples([MONTGOMERY], model.manifest)  # type: ignore[attr-defined]
    for example in examples:
        if example.patient in held_out:
            found = model.segment(example.image).array
            values.append(dice(found > 0, example.labels > 0))
            sides.append(dice(found == LEFT, example.labels == LEFT))
    assert len(values) == len(held_out) == 28
    assert np.mean(values) >= 0.970
    assert np.percentile(values, 5) >= 0.94
    assert np.mean(sides) >= 0.96


def test_weights_name_their_training() -> None:
    """The record of the run lies beside them and names the same held-out patients."""
    record = json.loads((FOLDER / "training.json").read_text())
    assert record["model"] == "cxr_lungs"
    assert len(record["validation"]) == 28
    assert not {c["patient"] for c in record["validation"]} & {
        c["patient"] for c in record["training"]
    }
