"""A model's network in PyTorch, built by its ``network.py`` and filled with verified weights.

Nothing is unpickled: weights are safetensors whose SHA-256 stands in the manifest.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from node.errors import ModelFault
from node.manifest import (
    MANIFEST_NAME,
    NETWORK_NAME,
    WEIGHTS_NAME,
    WithWeights,
)

if TYPE_CHECKING:
    import torch


def load_network(folder: Path, manifest: WithWeights) -> torch.nn.Module:
    """The network in evaluation mode, float32, on the CPU; imports torch.

    Raises
    ------
    ModelFault
        The weights are missing, are not those of the manifest or do not fit, or ``network.py``
        does not build.
    """
    weights = verified_weights(folder, manifest)
    network = build_network(folder, manifest)
    import safetensors
    import safetensors.torch

    try:
        network.load_state_dict(safetensors.torch.load(weights))
    except (RuntimeError, safetensors.SafetensorError) as error:
        raise ModelFault(
            f"Model {folder.name}: {WEIGHTS_NAME} does not fit the network of {NETWORK_NAME}"
        ) from error
    return network.eval()


def build_network(folder: Path, manifest: WithWeights) -> torch.nn.Module:
    """The untrained network of ``network.py``; imports torch.

    Raises
    ------
    ModelFault
        ``network.py`` is missing or does not build.
    """
    import_torchvision()
    try:
        network: torch.nn.Module = _network_module(folder, manifest).build_network(
            manifest.slab_shape[0], len(manifest.segments) + 1
        )
    except (AttributeError, TypeError, ImportError, SyntaxError) as error:
        raise ModelFault(f"Model {folder.name}: {NETWORK_NAME} does not build: {error}") from error
    return network


def verified_weights(folder: Path, manifest: WithWeights) -> bytes:
    """The bytes whose hash was checked are the bytes that are loaded."""
    try:
        weights = (folder / WEIGHTS_NAME).read_bytes()
    except OSError as error:
        raise ModelFault(
            f"Model {folder.name}: {WEIGHTS_NAME} cannot be read",
            remedy="Install the whole folder; or train the model, then `segnode models seal` it.",
        ) from error
    if hashlib.sha256(weights).hexdigest() != manifest.weights.sha256:
        raise ModelFault(
            f"Model {folder.name}: the SHA-256 of {WEIGHTS_NAME} is not the one in "
            f"{MANIFEST_NAME}; the file is damaged or was altered"
        )
    return weights


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


def _network_module(folder: Path, manifest: WithWeights) -> Any:
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
