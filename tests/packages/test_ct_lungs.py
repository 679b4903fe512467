"""ct_lungs: left is the patient's left, real lungs are found, what is no chest is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from node.errors import UnsuitableInput
from node.imaging.suitability import require_suitable
from node.imaging.volume import series_geometry, volume_from_series
from node.packages import Model, load_model
from node.sdk import Volume
from tests.phantoms import LEFT_LUNG, ORIENTATIONS, RIGHT_LUNG, chest_truth, ct_series

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
DEMO = ROOT / "deploy" / "demo" / "ct"
DEMO_MASK = DATA / "ct_chest_cmb_crc_01068_labels" / "pseudo_lung_mask_256.npz"
HEAD = DATA / "head_ct_mr_sr_adit_1005" / "ct_sr"


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(ROOT / "models" / "ct_lungs")


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


@pytest.mark.parametrize("position", ORIENTATIONS)
def test_left_and_right_are_the_patients_in_every_position(model: Model, position: str) -> None:
    """On a phantom whose sides are known, both lungs are found with their own label."""
    series = ct_series(position=position, slices=24, rows=110, columns=130, spacing_mm=(6, 3, 3))
    volume = volume_from_series(series)
    truth = chest_truth(series)
    found = model.segment(volume).array
    assert dice(found == LEFT_LUNG, truth == LEFT_LUNG) > 0.95
    assert dice(found == RIGHT_LUNG, truth == RIGHT_LUNG) > 0.95


def test_segment_numbers_carry_the_codes_of_their_side(model: Model) -> None:
    """Number 1 is left, 2 is right, in label and in SNOMED CT."""
    left, right = model.manifest.segments
    assert (left.number, left.label, left.type.value) == (LEFT_LUNG, "Left lung", "44029006")
    assert (right.number, right.label, right.type.value) == (RIGHT_LUNG, "Right lung", "3341006")


@pytest.fixture(scope="module")
def demo() -> Volume:
    """The chest CT of the demo, whose patient was never trained on."""
    return volume_from_series([dcmread(path) for path in sorted(DEMO.glob("*.dcm"))])


@pytest.fixture(scope="module")
def demo_labels(model: Model, demo: Volume) -> np.ndarray:
    return model.segment(demo).array


def test_both_lungs_of_the_demo_patient(demo: Volume, demo_labels: np.ndarray) -> None:
    """Each lung of an adult has its size and lies on its own side of the patient."""
    # LPS: +x is the patient's left, and columns run along +x here.
    assert demo.affine[0, 2] > 0
    columns = {side: np.nonzero(demo_labels == side)[2] for side in (LEFT_LUNG, RIGHT_LUNG)}
    assert columns[LEFT_LUNG].mean() > columns[RIGHT_LUNG].mean() + 100
    volumes_ml = {side: len(where) * demo.voxel_ml for side, where in columns.items()}
    assert 3500 > volumes_ml[RIGHT_LUNG] > volumes_ml[LEFT_LUNG] > 1500


def test_demo_agrees_with_threshold_labels(demo: Volume, demo_labels: np.ndarray) -> None:
    """Dice of both lungs together against the threshold mask, airways and all, is over 0.95."""
    if not DEMO_MASK.is_file():
        pytest.skip("the threshold mask of the demo series is not on this machine")
    with np.load(DEMO_MASK, allow_pickle=False) as file:
        shape = tuple(file["shape"])
        masks = np.unpackbits(file["mask"])[: np.prod(shape)].reshape(shape).astype(bool)
        by_uid = dict(zip(file["sop"].tolist(), masks, strict=True))
    truth = np.stack([by_uid[uid] for uid in demo.sop_instance_uids])
    truth = truth.repeat(2, axis=1).repeat(2, axis=2)
    assert dice(demo_labels > 0, truth) > 0.95


def test_a_body_without_air_is_empty(model: Model) -> None:
    """A phantom's abdomen, below the lungs, gets no label at all."""
    series = ct_series(
        slices=20, rows=110, columns=130, spacing_mm=(5, 3, 3), center_mm=(0, 0, -190)
    )
    assert not chest_truth(series).any()
    assert not model.segment(volume_from_series(series)).array.any()


def test_a_head_ct_is_refused_in_words(model: Model) -> None:
    """A real head CT does not reach the network; the cause names the keyword."""
    if not HEAD.is_dir():
        pytest.skip("the head CT is not on this machine")
    headers: list[Dataset] = [
        ds
        for path in sorted(HEAD.rglob("*"))
        if path.is_file() and path.suffix != ".txt"
        for ds in [dcmread(path, force=True, stop_before_pixels=True)]
        if ds.get("Modality") == "CT" and "LOCALIZER" not in ds.ImageType
    ]
    assert len(headers) > 1
    with pytest.raises(UnsuitableInput, match=r"shows the head \(BodyPartExamined\)"):
        require_suitable(model.manifest.input, headers, series_geometry(headers))
