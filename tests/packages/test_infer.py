"""The infer step on a real artifact folder and the real model."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from node.edges.artifacts import FolderArtifacts
from node.errors import (
    DamagedInstance,
    EmptyResult,
    GeometryError,
    ModelFault,
    UnsuitableInput,
)
from node.packages import load_model
from node.pipeline.infer import already_inferred, infer
from node.pipeline.working_data import LABEL_MAP_FILE, MEASUREMENTS_FILE, label_map_folder
from node.ports import Bundle
from node.runtimes.pytorch import TorchCpu
from node.segmentation import VolumeModel
from tests.journey import part10
from tests.phantoms import LEFT_LUNG, RIGHT_LUNG, chest_truth, ct_series

FOLDER = "job-1"
SHAPE = {"slices": 16, "rows": 100, "columns": 120, "spacing_mm": (6, 3.3, 3.3)}
PIXELS_TOO_COARSE_FOR = (0.3, 1.6)


@pytest.fixture(scope="module")
def model() -> VolumeModel:
    """ct_lungs with a contract that takes the phantom's coarse pixels."""
    model = load_model(Path(__file__).parents[2] / "models" / "ct_lungs")
    assert isinstance(model, VolumeModel)
    assert model.manifest.input.pixel_spacing_mm == PIXELS_TOO_COARSE_FOR
    contract = model.manifest.input.model_copy(update={"pixel_spacing_mm": (0.3, 4.0)})
    return VolumeModel(model.manifest.model_copy(update={"input": contract}), model.runtime)


@pytest.fixture
def artifacts(tmp_path: Path) -> FolderArtifacts:
    return FolderArtifacts(tmp_path)


def put(artifacts: FolderArtifacts, series: list[Dataset | bytes]) -> str:
    with artifacts.writing(f"{FOLDER}/instances") as bundle:
        for number, one in enumerate(series, start=1):
            bundle.add(f"{number:06d}.dcm", one if isinstance(one, bytes) else part10(one))
    return bundle.digest


def run(artifacts: FolderArtifacts, model: VolumeModel) -> tuple[Bundle, list[float]]:
    """What the step leaves of the only bundle of instances, and the shares that it reports."""
    [instances] = artifacts.bundles(f"{FOLDER}/instances")
    shares: list[float] = []
    digest = infer(artifacts, FOLDER, instances, model, shares.append)
    return artifacts.bundle(label_map_folder(FOLDER, instances), digest), shares


def test_label_map_and_measurements_come_back(
    artifacts: FolderArtifacts, model: VolumeModel
) -> None:
    """Labels in slice order with their UIDs, and volumes that are the labels' own."""
    series = ct_series(**SHAPE)
    put(artifacts, series[::-1])
    made, shares = run(artifacts, model)
    assert shares[-1] == 1
    stored = np.load(io.BytesIO(made.get(LABEL_MAP_FILE)), allow_pickle=False)
    labels = stored["labels"]
    assert labels.dtype == np.uint8
    assert stored["sop_instance_uids"].tolist() == [ds.SOPInstanceUID for ds in series]
    agreement = (labels == chest_truth(series)).mean()
    assert agreement > 0.98
    document = json.loads(made.get(MEASUREMENTS_FILE))
    assert document["model"]["digest"] == model.manifest.digest
    assert document["engine"]["name"] == "torch"
    assert document["engine"]["precision"] == "f32"
    assert [s["number"] for s in document["segments"]] == [LEFT_LUNG, RIGHT_LUNG]
    for segment in document["segments"]:
        where = np.flatnonzero((labels == segment["number"]).any(axis=(1, 2)))
        voxels = int((labels == segment["number"]).sum())
        assert segment["volume_ml"] == pytest.approx(voxels * 6 * 3.3 * 3.3 / 1000, rel=1e-4)
        assert [segment["first_slice"], segment["last_slice"]] == [where[0], where[-1]]
        assert -900 < segment["mean"] < -800
        assert 0 < segment["standard_deviation"] < 100
        assert 150 < segment["diameter_mm"] < 260


def test_running_again_writes_the_same_bytes(
    artifacts: FolderArtifacts, model: VolumeModel
) -> None:
    """A worker that was killed and started again changes nothing."""
    put(artifacts, ct_series(**SHAPE))
    run(artifacts, model)
    names = artifacts.names(FOLDER)
    first = {name: artifacts.get(name) for name in names}
    run(artifacts, model)
    assert {name: artifacts.get(name) for name in artifacts.names(FOLDER)} == first


def test_a_message_that_comes_twice_finds_the_label_map_if_it_is_whole(
    artifacts: FolderArtifacts, model: VolumeModel, tmp_path: Path
) -> None:
    """Whole: nothing is computed again. Half of it lost to a power failure: as if it were not."""
    instances = put(artifacts, ct_series(**SHAPE))
    assert already_inferred(artifacts, FOLDER, instances) is None
    made, _ = run(artifacts, model)
    before = made.get(LABEL_MAP_FILE)
    digest = already_inferred(artifacts, FOLDER, instances)
    [stored] = tmp_path.rglob(LABEL_MAP_FILE)
    assert stored.parent.name == digest
    stored.write_bytes(b"")
    assert already_inferred(artifacts, FOLDER, instances) is None
    again, _ = run(artifacts, model)
    assert again.get(LABEL_MAP_FILE) == before
    assert already_inferred(artifacts, FOLDER, instances) == digest


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"center_mm": (0, 0, -190)}, EmptyResult),
        ({"BodyPartExamined": "HEAD"}, UnsuitableInput),
        ({"spacing_mm": (6, 5, 5)}, UnsuitableInput),
        ({"missing": [7]}, GeometryError),
        ({"PixelData": b"\0" * 100}, DamagedInstance),
    ],
)
def test_what_cannot_be_segmented_leaves_no_result(
    artifacts: FolderArtifacts,
    model: VolumeModel,
    change: dict[str, object],
    error: type[Exception],
) -> None:
    """A refusal is one of the named errors, and nothing half-done is left behind."""
    put(artifacts, ct_series(**{**SHAPE, **change}))
    with pytest.raises(error):
        run(artifacts, model)
    assert all(name.startswith(f"{FOLDER}/instances/") for name in artifacts.names(FOLDER))


def test_an_instance_that_was_unreadable_from_the_start_is_damage(
    artifacts: FolderArtifacts, model: VolumeModel
) -> None:
    """Bytes that are no DICOM name the position, not the file."""
    first, second, _, *others = ct_series(**SHAPE)
    put(artifacts, [first, second, b"not DICOM", *others])
    with pytest.raises(DamagedInstance, match="Instance 3 cannot be read"):
        run(artifacts, model)


def test_a_network_that_breaks_its_promise_is_a_model_fault(
    artifacts: FolderArtifacts, model: VolumeModel
) -> None:
    """Three classes promised and one delivered is told as such."""
    import torch

    wrong = VolumeModel(model.manifest, TorchCpu(torch.nn.Conv2d(3, 1, 1), threads=1))
    put(artifacts, ct_series(**SHAPE))
    with pytest.raises(ModelFault, match="its manifest promises"):
        run(artifacts, wrong)
