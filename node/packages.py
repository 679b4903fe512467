"""Find, verify and load models by folder and manifest.

Finding reads manifests only and imports no torch: the hospital side does it too. Loading verifies
the SHA-256 of the weights before anything is computed with them, never unpickles, and chooses what
runs the network: a GPU, else OpenVINO, else PyTorch. Every choice is held against the model's
reference vector on the machine that it is made on.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Literal

from node import log
from node.errors import ModelFault, NodeError
from node.foreign.model import CommandModel, load_command_model
from node.manifest import (
    MANIFEST_NAME,
    CommandManifest,
    ModelManifest,
    RadiographManifest,
    WithWeights,
    read_manifest,
)
from node.radiographs import RadiographModel
from node.reference import Labels, Reference, agreement, read_reference
from node.runtimes import Precision, Runtime, openvino_cpu
from node.runtimes.exports import Export, find_export, is_exported, keep_export
from node.runtimes.mirrored import Mirrored
from node.runtimes.network import load_network, verified_weights
from node.runtimes.tiled import Tiled
from node.sdk import Radiograph
from node.segmentation import VolumeModel

SAME_DICE = 0.9999
"""Two runtimes that compute in float32 agree at least so well on the reference vector."""
REDUCED_DICE = 0.998
"""So does a reduced precision with float32, or it is not used."""

NetworkModel = VolumeModel | RadiographModel
Model = NetworkModel | CommandModel
"""Ready to segment."""

EngineChoice = Literal["auto", "openvino", "torch"]


def find_models(models_dir: Path) -> dict[str, ModelManifest]:
    """Manifests of all folders below ``models_dir`` that have a ``model.toml``, by name.

    Raises
    ------
    ModelFault
        A manifest is wrong, or the folder is not there. One bad model stops the start: a rule that
        names it would fail later, with a patient waiting.
    """
    if not models_dir.is_dir():
        raise ModelFault(
            "The folder of models does not exist", remedy="Correct models_dir in segnode.toml."
        )
    folders = sorted(path.parent for path in models_dir.glob(f"*/{MANIFEST_NAME}"))
    return {folder.name: read_manifest(folder) for folder in folders}


class Models:
    """The models of a compute worker, each loaded once, at its first use."""

    def __init__(self, models_dir: Path, *, threads: int, exports: Path | None = None) -> None:
        """``threads`` of the processor for each model; ``exports`` as in :func:`load_model`."""
        self._models_dir = models_dir
        self._threads = threads
        self._exports = exports
        self._loaded: dict[str, Model] = {}

    def prepare(self) -> subprocess.Popen[bytes] | None:
        """Begin to make the exports that are missing, before a patient waits for them.

        In a process of their own, which nobody has to wait for: 300 MB of torch do not stay, and
        a worker that forks its children has no thread of ours. What cannot be exported is run by
        torch. None when nothing is missing.
        """
        if self._exports is None or not openvino_cpu.is_installed() or _gpu_may_be_here():
            return None
        missing = [
            str(self._models_dir / name)
            for name, manifest in find_models(self._models_dir).items()
            if not isinstance(manifest, CommandManifest)
            and not is_exported(self._exports, manifest)
        ]
        if not missing:
            return None
        command = [sys.executable, "-m", "node.packages", *missing, str(self._exports)]
        quiet = subprocess.DEVNULL
        return subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet)

    def loaded(self, name: str, digest: str) -> Model:
        """The model ``name``, whose digest must be the one that the job was made for.

        Raises
        ------
        ModelFault
            Another version lies here than the hospital side routed to; see also
            :func:`load_model`.
        """
        folder = self._models_dir / name
        if read_manifest(folder).digest != digest:
            raise ModelFault(
                f"Model {name} on this compute worker is not the one that the job asks for",
                remedy="Install the same models folder on all machines, then process it anew.",
            )
        model = self._loaded.get(name)
        if model is None or model.manifest.digest != digest:
            model = load_model(folder, threads=self._threads, exports=self._exports)
            self._loaded[name] = model
        return model


def load_model(
    folder: Path,
    *,
    threads: int = 1,
    exports: Path | None = None,
    engine: EngineChoice = "auto",
) -> Model:
    """Verify one model folder and make it ready.

    Parameters
    ----------
    threads
        Of the processor.
    exports
        Folder in which exports for OpenVINO are kept; without it OpenVINO is not used.
    engine
        ``auto`` is the fastest that gives the model's own labels on this machine.

    Raises
    ------
    ModelFault
        The manifest is wrong, the weights are missing or not those of the manifest, the network
        code does not build a network that takes them, or nothing here can run it.
    """
    manifest = read_manifest(folder)
    if isinstance(manifest, CommandManifest):
        return load_command_model(folder, manifest, threads=threads)
    return load_network_model(folder, manifest, threads=threads, exports=exports, engine=engine)


def load_network_model(
    folder: Path,
    manifest: WithWeights,
    *,
    threads: int = 1,
    exports: Path | None = None,
    engine: EngineChoice = "auto",
    reduced_dice: float = REDUCED_DICE,
) -> NetworkModel:
    """See :func:`load_model`; below ``reduced_dice`` bfloat16 is not used on a processor."""
    verified_weights(folder, manifest)
    if engine == "auto" and _gpu_may_be_here() and (model := on_gpu(folder, manifest)):
        return model
    if engine != "torch" and exports is not None and openvino_cpu.is_installed():
        try:
            return _on_openvino(folder, manifest, threads, exports, reduced_dice)
        except (NodeError, OSError) as error:  # OSError: exports cannot be written there
            if engine == "openvino":
                raise
            kind = type(error).__name__
            log.get().warning("torch instead of OpenVINO", model=folder.name, error=kind)
    if engine == "openvino":
        raise ModelFault(
            "OpenVINO is not installed, or has no folder for its exports",
            remedy="pip install 'segnode[compute]'",
        )
    return on_torch(folder, manifest, threads)


def on_torch(folder: Path, manifest: WithWeights, threads: int) -> NetworkModel:
    """The model on the processor in PyTorch, float32: what everything else is compared with."""
    _require_torch(folder)
    from node.runtimes.pytorch import TorchCpu

    return _model(manifest, TorchCpu(load_network(folder, manifest), threads))


def find_or_make_export(folder: Path, manifest: WithWeights, exports: Path) -> Export:
    """The export that is kept, or a new one; see :func:`make_export`."""
    return find_export(exports, manifest) or make_export(folder, manifest, exports)


def make_export(folder: Path, manifest: WithWeights, exports: Path) -> Export:
    """Export the network for OpenVINO, with what PyTorch finds in the reference vector.

    Raises
    ------
    ModelFault
        See :func:`load_model`; or the reference vector cannot be read, or OpenVINO cannot take the
        network.
    """
    reference = read_reference(folder, manifest)
    labels = found_in(on_torch(folder, manifest, threads=1), reference)
    try:
        return keep_export(exports, manifest, load_network(folder, manifest), labels)
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        raise ModelFault(
            f"Model {folder.name}: OpenVINO cannot export the network ({type(error).__name__})",
            remedy="PyTorch runs it; nothing else has to be done.",
        ) from error


def on_openvino(
    manifest: WithWeights, export: Export, precision: Precision, threads: int
) -> NetworkModel:
    """The model in OpenVINO, in one precision, unchecked."""
    runtime = openvino_cpu.OpenVinoCpu(export.xml, export.weights, precision, threads)
    return _model(manifest, runtime)


def found_in(model: NetworkModel, reference: Reference) -> Labels:
    """What a model labels in a reference vector, whatever its kind."""
    if isinstance(model, RadiographModel):
        if not isinstance(reference.case, Radiograph):
            raise TypeError("a radiograph model has a radiograph as its reference")
        return model.segment(reference.case).array
    if isinstance(reference.case, Radiograph):
        raise TypeError("a volume model has a volume as its reference")
    return model.segment(reference.case).array


def _on_openvino(
    folder: Path, manifest: WithWeights, threads: int, exports: Path, reduced_dice: float
) -> NetworkModel:
    """bfloat16 where the processor has it and the labels stay the same, else float32."""
    export = find_or_make_export(folder, manifest, exports)
    reference = read_reference(folder, manifest)
    if manifest.inference.reduced_precision and openvino_cpu.computes_bf16():
        model = on_openvino(manifest, export, "bf16", threads)
        if agreement(found_in(model, reference), export.torch_labels) >= reduced_dice:
            return model
    model = on_openvino(manifest, export, "f32", threads)
    if agreement(found_in(model, reference), export.torch_labels) < SAME_DICE:
        raise ModelFault(
            f"Model {folder.name}: OpenVINO does not find in the reference vector what PyTorch "
            "finds",
            remedy="PyTorch runs the model; report it with `segnode models check`.",
        )
    return model


def on_gpu(folder: Path, manifest: WithWeights) -> NetworkModel | None:
    """Half precision where the labels stay the same, else float32; None without a usable GPU."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    from node.runtimes.pytorch import TorchGpu

    exact = _model(
        manifest, TorchGpu(load_network(folder, manifest), manifest.slab_shape, half=False)
    )
    if not manifest.inference.reduced_precision:
        return exact
    reference = read_reference(folder, manifest)
    half = _model(
        manifest, TorchGpu(load_network(folder, manifest), manifest.slab_shape, half=True)
    )
    alike = agreement(found_in(half, reference), found_in(exact, reference))
    return half if alike >= REDUCED_DICE else exact


def _model(manifest: WithWeights, runtime: Runtime) -> NetworkModel:
    choice = manifest.inference
    if not isinstance(manifest, RadiographManifest):
        seen = manifest.preprocessing
        if seen.plane_size > seen.in_plane_size:
            runtime = Tiled(runtime, seen.in_plane_size, seen.plane_size)
    if choice.mirror:
        runtime = Mirrored(runtime, len(manifest.segments) + 1, choice.mirror_swaps)
    if isinstance(manifest, RadiographManifest):
        return RadiographModel(manifest, runtime)
    return VolumeModel(manifest, runtime)


def _gpu_may_be_here() -> bool:
    """Whether a driver shows a GPU, asked without importing torch: most machines have none."""
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd"))


def _require_torch(folder: Path) -> None:
    if importlib.util.find_spec("torch") is None:
        raise ModelFault(
            f"Model {folder.name}: it is not exported for OpenVINO, and PyTorch is not installed",
            remedy="Bring the export (`segnode models check` makes it where PyTorch is installed), "
            "or pip install 'segnode[torch]'.",
        )


def _main() -> None:
    """``python -m node.packages FOLDER ... EXPORTS``: make exports; see :meth:`Models.prepare`."""
    *folders, exports = map(Path, sys.argv[1:])
    failed = False
    for folder in folders:
        try:
            manifest = read_manifest(folder)
            if not isinstance(manifest, CommandManifest):
                make_export(folder, manifest, exports)
        except (NodeError, OSError) as error:
            failed = True
            sys.stderr.write(f"{error}\n")
    sys.exit(int(failed))


if __name__ == "__main__":
    _main()
