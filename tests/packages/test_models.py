"""The suite that every model of ``models/`` passes: verified, contained, oriented, reproducible."""

from __future__ import annotations

import ast
import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from node.errors import ModelFault
from node.packages import Model, Models, find_models, load_model
from node.sdk import Volume, read_manifest

ROOT = Path(__file__).parents[2]
FOLDERS = sorted(path.parent for path in (ROOT / "models").glob("*/model.toml"))
MAY_IMPORT = {"__future__", "node.sdk", "numpy", "segmentation_models_pytorch", "torch", "math"}
MAX_WEIGHTS_BYTES = 25_000_000

pytestmark = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


@pytest.fixture(scope="module")
def loaded() -> dict[Path, Model]:
    return {folder: load_model(folder) for folder in FOLDERS}


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """The model's folder, free to be spoiled."""
    return Path(shutil.copytree(folder, tmp_path / folder.name))


def reference(folder: Path) -> Volume:
    with np.load(folder / "reference" / "input.npz", allow_pickle=False) as file:
        array, affine, spacing = file["array"], file["affine"], file["spacing_mm"]
    first, second, third = (float(value) for value in spacing)
    uids = tuple(f"2.25.{index}" for index in range(len(array)))
    return Volume(array, affine, (first, second, third), uids)


def test_reference_input_gives_the_expected_labels(folder: Path, loaded: dict[Path, Model]) -> None:
    """What the author's machine found, this one finds, but for a few voxels of rounding."""
    found = loaded[folder].segment(reference(folder)).array
    with np.load(folder / "reference" / "expected.npz", allow_pickle=False) as file:
        expected = file["labels"]
    assert found.shape == expected.shape
    for segment in loaded[folder].manifest.segments:
        one, other = found == segment.number, expected == segment.number
        assert other.any(), f"{segment.label} is not in the reference"
        assert 2 * (one & other).sum() / (one.sum() + other.sum()) > 0.99


@pytest.mark.parametrize("flips", list(itertools.product([False, True], repeat=3)))
def test_labels_follow_the_patient_not_the_scan_direction(
    folder: Path, loaded: dict[Path, Model], flips: tuple[bool, bool, bool]
) -> None:
    """Feet first, prone or mirrored rows: the same voxel of the patient gets the same label."""
    volume = reference(folder)
    axes = [axis for axis in range(3) if flips[axis]]
    affine = volume.affine.copy()
    for axis in axes:
        affine[:3, 3] += affine[:3, axis] * (volume.array.shape[axis] - 1)
        affine[:3, axis] *= -1
    turned = Volume(
        np.flip(volume.array, axes), affine, volume.spacing_mm, volume.sop_instance_uids
    )
    expected = loaded[folder].segment(volume).array
    found = loaded[folder].segment(turned).array
    np.testing.assert_array_equal(np.flip(found, axes), expected)


def test_segmenting_twice_gives_the_same_bytes(folder: Path, loaded: dict[Path, Model]) -> None:
    """A step that runs again makes the same result; progress only grows, and ends at 1."""
    shares: list[float] = []
    first = loaded[folder].segment(reference(folder), shares.append)
    second = loaded[folder].segment(reference(folder))
    np.testing.assert_array_equal(first.array, second.array)
    assert first.array.dtype == np.uint8
    assert first.sop_instance_uids == reference(folder).sop_instance_uids
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_altered_weights_are_not_loaded(copy: Path, folder: Path) -> None:
    """One flipped bit, and the model does not start."""
    weights = bytearray((copy / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "weights.safetensors").write_bytes(weights)
    with pytest.raises(ModelFault, match=r"SHA-256 of weights\.safetensors"):
        load_model(copy)


@pytest.mark.parametrize("name", ["weights.safetensors", "network.py"])
def test_missing_files_are_named(copy: Path, folder: Path, name: str) -> None:
    """An incomplete folder says which file it lacks."""
    (copy / name).unlink()
    with pytest.raises(ModelFault, match=name):
        load_model(copy)


def test_digest_covers_code_and_manifest(copy: Path, folder: Path) -> None:
    """Another network or another threshold is another model, so a job is not mistaken for old."""
    digest = read_manifest(copy).digest
    assert digest == read_manifest(folder).digest
    (copy / "network.py").write_text((copy / "network.py").read_text() + "\n# changed\n")
    changed = read_manifest(copy).digest
    assert changed != digest
    (copy / "model.toml").write_text((copy / "model.toml").read_text() + "\n# changed\n")
    assert read_manifest(copy).digest not in (digest, changed)


def test_a_worker_refuses_another_version_than_the_job_asks_for(copy: Path, folder: Path) -> None:
    """Hospital and compute side must hold the same model."""
    models = Models(copy.parent, threads=1)
    wanted = read_manifest(copy).digest
    assert models.loaded(copy.name, wanted) is models.loaded(copy.name, wanted)
    with pytest.raises(ModelFault, match="not the one that the job asks for"):
        models.loaded(copy.name, "0" * 64)


def test_network_that_does_not_fit_is_a_fault_of_the_model(copy: Path, folder: Path) -> None:
    """Weights of one network in another end in a message, not a traceback of torch."""
    (copy / "network.py").write_text(
        "import torch\n\n\ndef build_network(in_channels, classes):\n"
        "    return torch.nn.Conv2d(in_channels, classes, 1)\n"
    )
    with pytest.raises(ModelFault, match="does not fit the network"):
        load_model(copy)
    (copy / "network.py").write_text("nothing = True\n")
    with pytest.raises(ModelFault, match=r"network\.py does not build"):
        load_model(copy)


def test_network_code_lives_under_a_private_name(folder: Path, loaded: dict[Path, Model]) -> None:
    """Loading a model makes no importable top-level module, which another could shadow."""
    assert loaded[folder].manifest.name == folder.name
    assert "network" not in sys.modules
    assert any(name.startswith(f"_segnode_model_{folder.name}_") for name in sys.modules)


def test_network_code_imports_only_what_a_model_may(folder: Path) -> None:
    """network.py runs in the compute worker: the node's sdk, numpy, torch and smp, no more."""
    tree = ast.parse((folder / "network.py").read_text())
    imported = {
        name
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported <= MAY_IMPORT


def test_package_is_complete_and_small(folder: Path) -> None:
    """Card, training code and reference are beside the weights; nothing is pickled."""
    names = {path.name for path in folder.iterdir()}
    assert {"MODEL_CARD.md", "train.py", "reference", "network.py"} <= names
    assert (folder / "weights.safetensors").stat().st_size <= MAX_WEIGHTS_BYTES
    assert not [path for path in folder.rglob("*") if path.suffix in {".pt", ".pth", ".pkl"}]


def test_finding_models_needs_no_torch(folder: Path) -> None:
    """The hospital side reads manifests in a process that never imports torch."""
    code = (
        "import sys; from pathlib import Path; from node.packages import find_models;"
        f"assert {folder.name!r} in find_models(Path({str(folder.parent)!r}));"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert find_models(folder.parent)[folder.name] == read_manifest(folder)
