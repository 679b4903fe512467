"""The runtimes: the same labels whatever computes, exports that are safe to share."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from pydicom import dcmread

from node import packages
from node.errors import ModelFault
from node.imaging.volume import volume_from_series
from node.manifest import Inference, NetworkManifest, read_manifest
from node.packages import (
    REDUCED_DICE,
    SAME_DICE,
    Models,
    load_model,
    load_network_model,
    on_openvino,
    on_torch,
)
from node.reference import agreement
from node.runtimes import Engine, Runtime, Scores, openvino_cpu
from node.runtimes.exports import find_export, is_exported, keep_export
from node.runtimes.mirrored import Mirrored
from node.runtimes.openvino_cpu import OpenVinoCpu
from node.runtimes.pytorch import TorchCpu
from node.sdk import Volume
from node.segmentation import VolumeModel
from tests.packages.conftest import MODELS
from tests.phantoms import ct_series

CT_LUNGS = MODELS / "ct_lungs"
DEMO = MODELS.parent / "deploy" / "demo"
SLAB = (3, 64, 64)


@pytest.fixture(scope="module")
def manifest() -> NetworkManifest:
    manifest = read_manifest(CT_LUNGS)
    assert isinstance(manifest, NetworkManifest)
    return manifest


@pytest.fixture(scope="module")
def phantom() -> Volume:
    return volume_from_series(ct_series(slices=13, rows=110, columns=130, spacing_mm=(6, 3, 3)))


@pytest.fixture(scope="module")
def real() -> Volume:
    """A part of the demo's chest CT."""
    paths = sorted(DEMO.rglob("*.dcm"))
    assert len(paths) == 100
    return volume_from_series([dcmread(path) for path in paths[30:60:2]])


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    """A small network whose weights are the same in every run."""
    torch.manual_seed(3)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 3, 1)
    ).eval()


@pytest.fixture(scope="module")
def exported(network: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> OpenVinoCpu:
    """The same network in OpenVINO, float32."""
    xml = tmp_path_factory.mktemp("small") / "network.xml"
    openvino_cpu.save_export(network, SLAB, xml)
    return OpenVinoCpu(xml.read_bytes(), xml.with_suffix(".bin").read_bytes(), "f32", threads=2)


def slabs(*sizes: int) -> list[Scores]:
    rng = np.random.default_rng(7)
    return [rng.random((size, *SLAB), dtype=np.float32) for size in sizes]


@dataclass(frozen=True)
class InBatchesOf:
    """A runtime that asks for batches of another size."""

    runtime: Runtime
    batch_slices: int

    @property
    def engine(self) -> Engine:
        return self.runtime.engine

    def scores(self, slabs: Iterator[Scores]) -> Iterator[Scores]:
        return self.runtime.scores(slabs)


# -- labels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("volume", ["phantom", "real"])
def test_float32_gives_the_same_labels_in_every_runtime_and_batch_size(
    manifest: NetworkManifest, exports: Path, volume: str, request: pytest.FixtureRequest
) -> None:
    """Dice of at least 0.9999 between PyTorch and OpenVINO, one slice or five at a time."""
    case: Volume = request.getfixturevalue(volume)
    export = find_export(exports, manifest)
    assert export is not None
    models = [on_torch(CT_LUNGS, manifest, 2), on_openvino(manifest, export, "f32", 2)]
    expected = models[0].segment(case).array
    assert expected.any()
    compared = 0
    for model in models:
        for batch in (1, 5):
            again = VolumeModel(manifest, InBatchesOf(model.runtime, batch))
            assert agreement(again.segment(case).array, expected) >= SAME_DICE
            compared += 1
    assert compared == 4


@pytest.mark.parametrize("volume", ["phantom", "real"])
def test_reduced_precision_keeps_the_labels(
    manifest: NetworkManifest, exports: Path, volume: str, request: pytest.FixtureRequest
) -> None:
    """What a worker ships, bfloat16 where the processor has it, agrees to 0.998 with PyTorch."""
    case: Volume = request.getfixturevalue(volume)
    shipped = load_model(CT_LUNGS, threads=2, exports=exports, engine="openvino")
    expected = on_torch(CT_LUNGS, manifest, 2).segment(case).array
    assert agreement(shipped.segment(case).array, expected) >= REDUCED_DICE


def test_one_thread_or_two_give_the_same_bytes(
    manifest: NetworkManifest, exports: Path, phantom: Volume
) -> None:
    """A worker with another number of threads makes the same result."""
    export = find_export(exports, manifest)
    assert export is not None
    for precision in ("f32", "bf16") if openvino_cpu.computes_bf16() else ("f32",):
        one, two = (
            on_openvino(manifest, export, precision, threads).segment(phantom).array
            for threads in (1, 2)
        )
        np.testing.assert_array_equal(one, two)


def test_bfloat16_is_used_only_where_the_author_allows_it(
    manifest: NetworkManifest, exports: Path
) -> None:
    """reduced_precision = false is obeyed; otherwise the processor decides."""
    exact = manifest.model_copy(update={"inference": Inference(reduced_precision=False)})
    model = load_network_model(CT_LUNGS, exact, exports=exports, engine="openvino")
    assert model.runtime.engine.precision == "f32"
    free = load_network_model(CT_LUNGS, manifest, exports=exports, engine="openvino")
    expected = "bf16" if openvino_cpu.computes_bf16() else "f32"
    assert free.runtime.engine.precision == expected


def test_a_precision_that_changes_labels_is_not_used(
    manifest: NetworkManifest, exports: Path
) -> None:
    """Where no Dice is good enough for bfloat16, float32 runs."""
    model = load_network_model(
        CT_LUNGS, manifest, exports=exports, engine="openvino", reduced_dice=1.1
    )
    assert model.runtime.engine.precision == "f32"


# -- scores -------------------------------------------------------------------------------------


def test_scores_come_in_order_and_whole(network: torch.nn.Module, exported: OpenVinoCpu) -> None:
    """More batches than requests, of unequal size: each result belongs to its batch."""
    batches = slabs(1, 3, 1, 2, 1, 1, 4)
    expected = list(TorchCpu(network, threads=1).scores(batches))
    found = list(exported.scores(iter(batches)))
    assert [one.shape for one in found] == [(len(slab), 3, 64, 64) for slab in batches]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_the_next_slabs_are_made_while_earlier_ones_run(exported: OpenVinoCpu) -> None:
    """Two batches and one more are taken before the first result is handed out."""
    taken = []

    def arriving() -> Iterator[Scores]:
        for number, slab in enumerate(slabs(*[1] * 6)):
            taken.append(number)
            yield slab

    scores = exported.scores(arriving())
    next(scores)
    assert taken == [0, 1, 2]
    assert len(list(scores)) == 5


def test_a_slab_may_be_overwritten_after_it_was_taken(exported: OpenVinoCpu) -> None:
    """The runtime keeps no reference to the caller's memory."""
    [expected] = exported.scores(slabs(1))
    reused = slabs(1)[0]
    first = reused.copy()

    def arriving() -> Iterator[Scores]:
        for _ in range(4):
            np.copyto(reused, first)
            yield reused
            reused.fill(0)

    for scores in exported.scores(arriving()):
        np.testing.assert_array_equal(scores, expected)


def test_a_failure_among_the_slabs_leaves_the_runtime_usable(exported: OpenVinoCpu) -> None:
    """A damaged slice in the middle of a series does not spoil the next series."""

    def failing() -> Iterator[Scores]:
        yield from slabs(1, 1)
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        list(exported.scores(failing()))
    batches = slabs(1, 1, 1, 1)
    first, second = (list(exported.scores(batches)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_mirroring_sees_both_sides_alike(network: torch.nn.Module) -> None:
    """With left and right exchanged in the mirror, a mirrored image has mirrored scores."""
    mirrored = Mirrored(TorchCpu(network, threads=1), classes=3, swaps=[(1, 2)])
    [slab] = slabs(2)
    [straight] = mirrored.scores([slab])
    [turned] = mirrored.scores([np.ascontiguousarray(slab[..., ::-1])])
    np.testing.assert_allclose(turned[:, [0, 2, 1], :, ::-1], straight, atol=1e-5)
    [plain] = TorchCpu(network, threads=1).scores([slab])
    assert not np.allclose(plain, straight)


# -- exports ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["network.xml", "network.bin", "torch.npz"])
def test_an_altered_export_is_refused(
    manifest: NetworkManifest, exports: Path, tmp_path: Path, name: str
) -> None:
    """One flipped bit in any file, and the export is not used; PyTorch runs the model instead."""
    copy = shutil.copytree(exports, tmp_path / "exports")
    [path] = copy.glob(f"ct_lungs-*/{name}")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelFault, match="damaged or was altered"):
        find_export(copy, manifest)
    with pytest.raises(ModelFault, match="damaged or was altered"):
        load_model(CT_LUNGS, exports=copy, engine="openvino")
    assert load_model(CT_LUNGS, exports=copy).runtime.engine.name == "torch"


def test_an_export_of_other_labels_is_not_used(
    manifest: NetworkManifest, exports: Path, tmp_path: Path
) -> None:
    """An export that does not find what PyTorch found is no export of this model."""
    export = find_export(exports, manifest)
    assert export is not None
    wrong = np.roll(export.torch_labels, 5, axis=2)
    network = packages.load_network(CT_LUNGS, manifest)
    keep_export(tmp_path, manifest, network, wrong)
    with pytest.raises(ModelFault, match="does not find in the reference vector"):
        load_model(CT_LUNGS, exports=tmp_path, engine="openvino")


def test_two_workers_may_make_the_same_export_at_once(tmp_path: Path) -> None:
    """Both succeed, one folder is left, and it is whole."""
    command = [sys.executable, "-m", "node.packages", str(CT_LUNGS), str(tmp_path)]
    workers = [subprocess.Popen(command, cwd=MODELS.parent) for _ in range(2)]
    assert [worker.wait(timeout=240) for worker in workers] == [0, 0]
    [folder] = tmp_path.iterdir()
    record = json.loads((folder / "export.json").read_text())
    manifest = read_manifest(CT_LUNGS)
    assert isinstance(manifest, NetworkManifest)
    assert record["digest"] == manifest.digest
    assert find_export(tmp_path, manifest) is not None


def test_a_worker_prepares_exports_and_leaves_torch_out(tmp_path: Path) -> None:
    """Models.prepare makes what is missing in another process, once."""
    models, exports = tmp_path / "models", tmp_path / "exports"
    shutil.copytree(CT_LUNGS, models / "ct_lungs")
    code = (
        "import sys; from pathlib import Path; from node.packages import Models\n"
        f"models = Models(Path({str(models)!r}), threads=1, exports=Path({str(exports)!r}))\n"
        "assert models.prepare().wait() == 0\n"
        "assert not {'torch', 'openvino'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=MODELS.parent)
    manifest = read_manifest(CT_LUNGS)
    assert isinstance(manifest, NetworkManifest)
    assert is_exported(exports, manifest)
    made = {path.name: path.stat().st_mtime_ns for path in exports.iterdir()}
    assert Models(models, threads=1, exports=exports).prepare() is None
    assert {path.name: path.stat().st_mtime_ns for path in exports.iterdir()} == made


def test_openvino_does_not_report_to_its_maker() -> None:
    """Its import does not load the package that sends usage data."""
    code = (
        "import sys; from node.runtimes import openvino_cpu; openvino_cpu.processor()\n"
        "assert 'openvino' in sys.modules\n"
        "assert not [n for n, m in sys.modules.items() if 'openvino_telemetry' in n and m]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=MODELS.parent)
