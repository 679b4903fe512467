"""Exports for OpenVINO: made once from the verified weights, kept by digest, used by all workers.

One folder per model digest and OpenVINO release, written beside and renamed, so that two workers
that make the same export at once do no harm: the second finds it there. ``export.json`` holds the
SHA-256 of each file, and ``torch.npz`` what PyTorch found in the reference vector, which tells a
worker without torch on any processor whether its own labels agree.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from node.errors import ModelFault
from node.manifest import WithWeights
from node.reference import Labels
from node.runtimes import openvino_cpu

if TYPE_CHECKING:
    import torch

_XML, _BIN, _LABELS, _RECORD = "network.xml", "network.bin", "torch.npz", "export.json"


@dataclass(frozen=True)
class Export:
    """A verified export, and PyTorch's float32 labels of the reference vector.

    The bytes whose hash was checked are the bytes that are compiled.
    """

    xml: bytes
    weights: bytes
    torch_labels: Labels


def find_export(cache: Path, manifest: WithWeights) -> Export | None:
    """The export of that model for the installed OpenVINO; None when it is not made yet.

    Raises
    ------
    ModelFault
        A file is not the one that was written.
    """
    folder = cache / _name(manifest)
    try:
        record = json.loads((folder / _RECORD).read_text())
        files = {name: (folder / name).read_bytes() for name in (_XML, _BIN, _LABELS)}
    except FileNotFoundError:
        return None
    if {name: hashlib.sha256(data).hexdigest() for name, data in files.items()} != record["sha256"]:
        raise ModelFault(
            f"Model {manifest.name}: its export for OpenVINO is damaged or was altered",
            remedy=f"Delete the folder {folder.name} of the cache; it is made again.",
        )
    with np.load(io.BytesIO(files[_LABELS]), allow_pickle=False) as file:
        return Export(files[_XML], files[_BIN], file["labels"])


def is_exported(cache: Path, manifest: WithWeights) -> bool:
    """Whether there is an export, without reading it or importing OpenVINO."""
    return (cache / _name(manifest) / _RECORD).is_file()


def keep_export(
    cache: Path,
    manifest: WithWeights,
    network: torch.nn.Module,
    torch_labels: Labels,
) -> Export:
    """Export a network and keep it; whoever was first has made it.

    ``torch_labels`` is what the model finds in its reference vector with ``network`` in PyTorch.
    """
    cache.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=cache, prefix="."))
    try:
        openvino_cpu.save_export(network, manifest.slab_shape, beside / _XML)
        np.savez_compressed(beside / _LABELS, labels=torch_labels)
        hashes = {
            name: hashlib.sha256((beside / name).read_bytes()).hexdigest()
            for name in (_XML, _BIN, _LABELS)
        }
        record = {"model": manifest.name, "digest": manifest.digest, "sha256": hashes}
        (beside / _RECORD).write_text(json.dumps(record, indent=1, sort_keys=True))
        beside.chmod(0o755)
        try:
            beside.rename(cache / _name(manifest))
        except OSError:
            # A folder with files is not replaced: another worker was first.
            if not (cache / _name(manifest)).is_dir():
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    export = find_export(cache, manifest)
    assert export is not None  # noqa: S101 - it was made above, or by another
    return export


def _name(manifest: WithWeights) -> str:
    return f"{manifest.name}-{manifest.digest[:32]}-openvino-{openvino_cpu.version()}"
