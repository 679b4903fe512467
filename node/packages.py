"""Find, verify and load models by folder and manifest.

Finding reads manifests only and imports no torch: the hospital side does it too. Loading verifies
the SHA-256 of the weights before it opens them, and never unpickles.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from node.errors import ModelFault
from node.imaging.components import keep_large_components
from node.imaging.intensity import window
from node.imaging.pixels import AIR_HU
from node.imaging.resample import PlaneGrid, grid_on_body, patient_orientation
from node.imaging.sliding_window import context_offset, slabs
from node.sdk import (
    MANIFEST_NAME,
    NETWORK_NAME,
    WEIGHTS_NAME,
    LabelMap,
    ModelManifest,
    NetworkManifest,
    Progress,
    Volume,
    WithWeights,
    read_manifest,
)

if TYPE_CHECKING:
    import torch

BATCH_SLICES = 4
"""Slices per forward pass; more changes little on a CPU and costs memory."""


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


@dataclass(frozen=True)
class Model:
    """A verified, loaded model, ready to segment. Not for sharing between threads."""

    manifest: NetworkManifest
    network: torch.nn.Module

    def segment(self, volume: Volume, on_progress: Progress = lambda share: None) -> LabelMap:
        """Label every voxel of a volume; deterministic on one machine.

        The volume is turned to patient axes by its affine, sampled on the network's grid, labelled
        slab by slab, and the class scores are brought back to the source grid before the largest
        is taken, so that edges follow the source's pixels.

        Raises
        ------
        ModelFault
            The network's output is not (slices, segments + 1, size, size).
        """
        preprocessing = self.manifest.preprocessing
        orientation = patient_orientation(volume.affine)
        array = orientation.apply(volume.array)
        slices_mm, rows_mm, columns_mm = (volume.spacing_mm[axis] for axis in orientation.axes)
        grid = grid_on_body(
            array,
            (slices_mm, rows_mm, columns_mm),
            preprocessing.in_plane_size,
            preprocessing.in_plane_spacing_mm,
            preprocessing.body_above_hu,
        )
        planes = window(grid.from_source(array, AIR_HU), *preprocessing.window_hu)
        offset = context_offset(slices_mm, preprocessing.context_mm)
        labels = np.zeros(array.shape, np.uint8)
        for where, scores in self._scores(planes, offset):
            labels[where] = _labels_on_source(scores, grid)
            on_progress(where.stop / len(planes))
        post = self.manifest.postprocessing
        labels = keep_large_components(
            labels,
            volume.voxel_ml,
            post.min_component_ml,
            post.min_component_share,
            post.min_segment_ml,
        )
        return LabelMap(np.ascontiguousarray(orientation.undo(labels)), volume.sop_instance_uids)

    def _scores(
        self, planes: npt.NDArray[np.float32], offset: int
    ) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
        """Logits (slices, classes, size, size), batch by batch."""
        import torch

        size = planes.shape[1]
        classes = len(self.manifest.segments) + 1
        channels = self.manifest.preprocessing.context_slices
        for where, batch in slabs(planes, channels, offset, BATCH_SLICES):
            tensor = torch.from_numpy(batch).contiguous(memory_format=torch.channels_last)
            with torch.inference_mode():
                scores = self.network(tensor).numpy()
            if scores.shape != (len(batch), classes, size, size):
                raise ModelFault(
                    f"Model {self.manifest.name}: the network returns shape {scores.shape}, its "
                    f"manifest promises {(len(batch), classes, size, size)}"
                )
            yield where, scores


class Models:
    """The models of a compute worker, each loaded once, at its first use."""

    def __init__(self, models_dir: Path, *, threads: int) -> None:
        """``threads`` is how many torch may use in this process."""
        self._models_dir = models_dir
        self._threads = threads
        self._loaded: dict[str, Model] = {}

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
            import torch

            torch.set_num_threads(self._threads)
            model = self._loaded[name] = load_model(folder)
        return model


def load_model(folder: Path) -> Model:
    """Verify and load one model folder; imports torch.

    Raises
    ------
    ModelFault
        The manifest is wrong, the weights are missing or not those of the manifest, or the network
        code does not build a network that takes them.
    """
    manifest = read_manifest(folder)
    if not isinstance(manifest, NetworkManifest):
        raise ModelFault(f"Model {folder.name}: {MANIFEST_NAME} has no [weights]")
    weights = verified_weights(folder, manifest)
    import_torchvision()
    import safetensors
    import safetensors.torch
    import torch

    try:
        network: torch.nn.Module = _network_module(folder, manifest).build_network(
            manifest.preprocessing.context_slices, len(manifest.segments) + 1
        )
        network.load_state_dict(safetensors.torch.load(weights))
    except (AttributeError, TypeError, ImportError, SyntaxError) as error:
        raise ModelFault(f"Model {folder.name}: {NETWORK_NAME} does not build: {error}") from error
    except (RuntimeError, safetensors.SafetensorError) as error:
        raise ModelFault(
            f"Model {folder.name}: {WEIGHTS_NAME} does not fit the network of {NETWORK_NAME}"
        ) from error
    network = network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Model(manifest, network)


def import_torchvision() -> None:
    """Import torchvision, which segmentation_models_pytorch needs through timm and never calls.

    PyPI's torchvision is built against PyPI's CUDA torch. Beside a CPU torch its C++ operators do
    not load, and its Python half then fails at import, because it describes (registers fakes for)
    two operators that do not exist. Declaring their schemas is enough. Only after a failure: where
    the C++ half does load, a second declaration would end the process.
    """
    import torch

    try:
        import torchvision
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        for operator in ("nms", "qnms"):
            torch.library.define(f"torchvision::{operator}", schema)
        import torchvision  # noqa: F401


def verified_weights(folder: Path, manifest: WithWeights) -> bytes:
    """The bytes whose hash was checked are the bytes that are loaded."""
    try:
        weights = (folder / WEIGHTS_NAME).read_bytes()
    except OSError as error:
        raise ModelFault(f"Model {folder.name}: {WEIGHTS_NAME} cannot be read") from error
    if hashlib.sha256(weights).hexdigest() != manifest.weights.sha256:
        raise ModelFault(
            f"Model {folder.name}: the SHA-256 of {WEIGHTS_NAME} is not the one in "
            f"{MANIFEST_NAME}; the file is damaged or was altered"
        )
    return weights


def _network_module(folder: Path, manifest: ModelManifest) -> Any:
    """Run ``network.py`` under a private module name, so that no two models collide."""
    name = f"_segnode_model_{manifest.name}_{manifest.digest[:12]}"
    specification = importlib.util.spec_from_file_location(name, folder / NETWORK_NAME)
    if specification is None or specification.loader is None:
        raise ModelFault(f"Model {folder.name}: {NETWORK_NAME} cannot be read")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    try:
        specification.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _labels_on_source(scores: npt.NDArray[np.float32], grid: PlaneGrid) -> npt.NDArray[np.uint8]:
    """Largest class per source pixel, shape (slices, rows, columns); background off the grid."""
    # Scores over background, so that 0 beyond the grid means background.
    relative = scores[:, 1:] - scores[:, :1]
    if not (relative > 0).any():
        return np.zeros((len(scores), *grid.source_shape), np.uint8)
    on_source = grid.to_source(relative, outside=0.0)
    best = on_source.argmax(axis=1)
    found = np.take_along_axis(on_source, best[:, None], axis=1)[:, 0] > 0
    return np.where(found, best + 1, 0).astype(np.uint8)
