"""The suite that every model of ``models/`` passes: verified, contained, oriented, reproducible.

A folder that is dropped there is picked up by itself.
"""

from __future__ import annotations

import ast
import itertools
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from pydicom.dataset import Dataset

from node.errors import ModelFault, UnsuitableInput
from node.imaging.suitability import require_suitable
from node.imaging.views import choose_radiograph
from node.imaging.volume import series_geometry
from node.manifest import RadiographContract, WithWeights, read_manifest
from node.packages import (
    REDUCED_DICE,
    SAME_DICE,
    Models,
    NetworkModel,
    find_models,
    found_in,
    load_model,
)
from node.radiographs import RadiographModel
from node.reference import Reference, agreement, read_reference
from node.sdk import Volume
from node.segmentation import VolumeModel
from tests.packages.conftest import FOLDERS
from tests.phantoms import ct_series

ROOT = Path(__file__).parents[2]
MAY_IMPORT = {"__future__", "node.sdk", "numpy", "segmentation_models_pytorch", "torch", "math"}
MAX_WEIGHTS_BYTES = 25_000_000
CARD_SAYS = ("## Data", "## Numbers", "## Known failures", "Not a medical device")

pytestmark = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)

Engine = Literal["torch", "openvino"]
Load = Callable[[Path, Engine], NetworkModel]


@pytest.fixture(scope="module")
def kept() -> dict[tuple[Path, str], NetworkModel]:
    """Models by folder and engine."""
    return {}


@pytest.fixture
def load(kept: dict[tuple[Path, str], NetworkModel], exports: Path) -> Load:
    """Loads each model once."""

    def loaded(folder: Path, engine: Engine) -> NetworkModel:
        if (folder, engine) not in kept:
            model = load_model(folder, threads=2, exports=exports, engine=engine)
            assert isinstance(model, (VolumeModel, RadiographModel))
            kept[folder, engine] = model
        return kept[folder, engine]

    return loaded


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """The model's folder, free to be spoiled."""
    return Path(shutil.copytree(folder, tmp_path / folder.name))


def manifest_of(folder: Path) -> WithWeights:
    manifest = read_manifest(folder)
    assert isinstance(manifest, WithWeights)
    return manifest


def reference_of(folder: Path) -> Reference:
    return read_reference(folder, manifest_of(folder))


def test_reference_holds_every_segment(folder: Path) -> None:
    """A vector that lacks a segment would prove nothing of it."""
    found = set(np.unique(reference_of(folder).labels).tolist())
    assert found == {0, *(segment.number for segment in manifest_of(folder).segments)}


@pytest.mark.parametrize(("engine", "least"), [("torch", 0.99), ("openvino", 0.99)])
def test_reference_input_gives_the_expected_labels(
    folder: Path, load: Load, engine: Engine, least: float
) -> None:
    """What the author's machine found, each runtime of this one finds, but for a few voxels."""
    found = found_in(load(folder, engine), reference_of(folder))
    assert found.dtype == np.uint8
    assert agreement(found, reference_of(folder).labels) > least


def test_runtimes_agree(folder: Path, load: Load) -> None:
    """OpenVINO finds what PyTorch finds: to 0.9999 in float32, to 0.998 in bfloat16."""
    reference = reference_of(folder)
    shipped = load(folder, "openvino")
    assert shipped.runtime.engine.name == "openvino"
    least = SAME_DICE if shipped.runtime.engine.precision == "f32" else REDUCED_DICE
    expected = found_in(load(folder, "torch"), reference)
    assert agreement(found_in(shipped, reference), expected) >= least


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_segmenting_twice_gives_the_same_bytes(folder: Path, load: Load, engine: Engine) -> None:
    """A step that runs again makes the same result."""
    first, second = (found_in(load(folder, engine), reference_of(folder)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_progress_only_grows_and_ends_at_one(folder: Path, load: Load) -> None:
    """A progress bar never runs backwards, and the label map names its instances."""
    model, case = load(folder, "openvino"), reference_of(folder).case
    shares: list[float] = []
    label_map = model.segment(case, shares.append)  # type: ignore[arg-type]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert len(label_map.sop_instance_uids) == len(label_map.array)


@pytest.mark.parametrize("flips", list(itertools.product([False, True], repeat=3)))
def test_labels_follow_the_patient_not_the_scan_direction(
    folder: Path, load: Load, flips: tuple[bool, bool, bool]
) -> None:
    """Feet first, prone or mirrored rows: the same voxel of the patient gets the same label."""
    reference = reference_of(folder)
    case = reference.case
    axes = [axis for axis in range(3) if flips[axis]]
    if isinstance(case, Volume):
        affine = case.affine.copy()
        for axis in axes:
            affine[:3, 3] += affine[:3, axis] * (case.array.shape[axis] - 1)
            affine[:3, axis] *= -1
        turned = replace(case, array=np.flip(case.array, axes), affine=affine)
    else:
        if case.toward is None:
            pytest.skip("the reference radiograph does not say how it lies")
        # Axis 0 stands for an exchange of rows and columns.
        columns, rows = case.toward
        opposite = {"L": "R", "R": "L", "H": "F", "F": "H"}
        toward = (
            opposite[columns] if flips[2] else columns,
            opposite[rows] if flips[1] else rows,
        )
        array = np.flip(case.array, [axis - 1 for axis in axes if axis])
        if flips[0]:
            array, toward = array.T, toward[::-1]
        spacing = case.pixel_spacing_mm
        spacing = spacing[::-1] if spacing and flips[0] else spacing
        turned = replace(case, array=array, toward=toward, pixel_spacing_mm=spacing)
    model = load(folder, "openvino")
    expected = found_in(model, reference)
    found = found_in(model, replace(reference, case=turned))
    if not isinstance(case, Volume):
        found = found.transpose(0, 2, 1) if flips[0] else found
        axes = [axis for axis in axes if axis]
    np.testing.assert_array_equal(np.flip(found, axes), expected)


def test_altered_weights_are_not_loaded(copy: Path, folder: Path, exports: Path) -> None:
    """One flipped bit, and the model does not start, though its export is sound and ready."""
    weights = bytearray((copy / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "weights.safetensors").write_bytes(weights)
    with pytest.raises(ModelFault, match=r"SHA-256 of weights\.safetensors"):
        load_model(copy)
    with pytest.raises(ModelFault, match=r"SHA-256 of weights\.safetensors"):
        load_model(copy, exports=exports, engine="openvino")


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


def test_network_code_lives_under_a_private_name(folder: Path, load: Load) -> None:
    """Loading a model makes no importable top-level module, which another could shadow."""
    assert load(folder, "torch").manifest.name == folder.name
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
    assert {"MODEL_CARD.md", "reference", "network.py", "training.py"} <= names
    assert (folder / "weights.safetensors").stat().st_size <= MAX_WEIGHTS_BYTES
    assert not [path for path in folder.rglob("*") if path.suffix in {".pt", ".pth", ".pkl"}]


def test_card_tells_data_numbers_and_failures(folder: Path) -> None:
    """The card is of this version, and says on whom it was measured and where it fails."""
    card = (folder / "MODEL_CARD.md").read_text()
    assert card.startswith(f"# {folder.name} {manifest_of(folder).version}\n")
    for words in CARD_SAYS:
        assert words in card, f"the card does not hold {words!r}"


def test_manifest_tells_licence_data_use_and_metrics(folder: Path) -> None:
    """A site can decide from the manifest whether it may use the model, and for what."""
    content = tomllib.loads((folder / "model.toml").read_text())
    assert content["licence"]
    assert content["training_data"]
    assert content["intended_use"]
    assert content["metrics"]


def test_wrong_input_is_refused_in_words(folder: Path) -> None:
    """Another modality is refused before any pixel is read, and the remedy is what to send."""
    contract = manifest_of(folder).input
    series = ct_series(slices=3, rows=16, columns=16, spacing_mm=(5, 3, 3))
    for ds in series:
        ds.Modality = "OT"
    with pytest.raises(UnsuitableInput, match="Modality") as caught:
        refuse(contract, series)
    assert caught.value.remedy == contract.wanted


def refuse(contract: object, series: list[Dataset]) -> None:
    if isinstance(contract, RadiographContract):
        choose_radiograph(contract, series)
    else:
        require_suitable(contract, series, series_geometry(series))  # type: ignore[arg-type]


def test_finding_models_needs_no_torch(folder: Path) -> None:
    """The hospital side reads manifests in a process that imports no runtime."""
    code = (
        "import sys; from pathlib import Path; from node.packages import find_models;"
        f"assert {folder.name!r} in find_models(Path({str(folder.parent)!r}));"
        "assert not {'torch', 'openvino'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert find_models(folder.parent)[folder.name] == read_manifest(folder)


def test_a_ready_export_needs_neither_torch_nor_timm(folder: Path, exports: Path) -> None:
    """A CPU worker with an export loads and segments without torch, timm, torchvision or smp."""
    code = (
        "import sys; from pathlib import Path\n"
        "from node.packages import found_in, load_model\n"
        "from node.reference import read_reference\n"
        f"folder = Path({str(folder)!r})\n"
        f"model = load_model(folder, exports=Path({str(exports)!r}))\n"
        "assert model.runtime.engine.name == 'openvino'\n"
        "assert found_in(model, read_reference(folder, model.manifest)).any()\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "assert 'openvino' in loaded\n"
        "print(sorted(loaded & {'torch', 'timm', 'torchvision', 'segmentation_models_pytorch',\n"
        "              'safetensors', 'huggingface_hub'}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]"
