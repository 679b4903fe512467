"""`segnode models seal`: trained weights come into their folder, with hash and reference vector."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from node.errors import ModelFault, Rejected
from node.imaging.radiograph import radiograph_from
from node.imaging.views import choose_radiograph
from node.imaging.volume import volume_from_series
from node.manifest import (
    MANIFEST_NAME,
    WEIGHTS_NAME,
    CommandManifest,
    RadiographManifest,
    WithWeights,
    read_manifest,
)
from node.packages import found_in, on_torch
from node.reference import Reference, read_case, write_reference
from node.sdk import Radiograph, Volume

MAX_SLICES = 24
MAX_PIXELS = 128
MAX_RADIOGRAPH_PIXELS = 512


def seal_model(folder: Path, weights: Path | None, series: Path | None) -> Reference:
    """Put weights into a model's folder, and what they find in a series beside them.

    Parameters
    ----------
    weights
        Safetensors; None keeps those in the folder.
    series
        Folder with the DICOM of one series that shows every segment, thinned to a few hundred
        kilobytes; None keeps the input that is there and finds its labels anew.

    Raises
    ------
    ModelFault
        The model is a program, the weights do not fit, or a segment is not found in the reference.
    """
    _with_weights(folder)
    source = weights or folder / WEIGHTS_NAME
    if not source.is_file():
        raise ModelFault(f"Model {folder.name}: there are no weights {source.name} to seal")
    if source.resolve() != (folder / WEIGHTS_NAME).resolve():
        shutil.copyfile(source, folder / WEIGHTS_NAME)
    _write_hash(folder)
    manifest = _with_weights(folder)
    case = _thinned_case(series, manifest) if series else read_case(folder, manifest)
    model = on_torch(folder, manifest, threads=1)
    none_yet = np.zeros(0, np.uint8)
    reference = Reference(case, found_in(model, Reference(case, none_yet)))
    found = set(np.unique(reference.labels).tolist())
    for segment in manifest.segments:
        if segment.number not in found:
            raise ModelFault(
                f"Model {folder.name}: {segment.label} is not found in the reference series",
                remedy="Name a series that shows every segment, with --reference.",
            )
    write_reference(folder, reference)
    return reference


def thinned(case: Volume | Radiograph) -> Volume | Radiograph:
    """Every n-th slice, row and column, so that a reference vector stays small."""
    if isinstance(case, Radiograph):
        step = -(-max(case.array.shape) // MAX_RADIOGRAPH_PIXELS)
        spacing = case.pixel_spacing_mm
        return Radiograph(
            np.rint(case.array[::step, ::step]).astype(np.float32),
            None if case.padding is None else case.padding[::step, ::step],
            case.toward,
            None if spacing is None else (spacing[0] * step, spacing[1] * step),
            case.sop_instance_uid,
        )
    slices, rows, columns = case.array.shape
    steps = (-(-slices // MAX_SLICES), *[-(-max(rows, columns) // MAX_PIXELS)] * 2)
    affine = case.affine.copy()
    affine[:3, :3] *= steps
    array = case.array[:: steps[0], :: steps[1], :: steps[2]]
    slices_mm, rows_mm, columns_mm = (
        spacing * step for spacing, step in zip(case.spacing_mm, steps, strict=True)
    )
    return Volume(
        array, affine, (slices_mm, rows_mm, columns_mm), case.sop_instance_uids[:: steps[0]]
    )


def _thinned_case(series: Path, manifest: WithWeights) -> Volume | Radiograph:
    instances = []
    for path in sorted(path for path in series.rglob("*") if path.is_file()):
        try:
            instances.append(dcmread(path))
        except InvalidDicomError:
            continue
    if not instances:
        raise Rejected("The folder of the reference series holds no DICOM")
    if isinstance(manifest, RadiographManifest):
        chosen = choose_radiograph(manifest.input, instances)
        return thinned(radiograph_from(instances[chosen.index]))
    return thinned(volume_from_series(instances))


def _with_weights(folder: Path) -> WithWeights:
    manifest = read_manifest(folder)
    if isinstance(manifest, CommandManifest):
        raise ModelFault(f"Model {folder.name} is a program: it has no weights of ours")
    return manifest


def _write_hash(folder: Path) -> None:
    """The SHA-256 of the weights into ``[weights]``; the rest of the manifest stays as it is."""
    sha256 = hashlib.sha256((folder / WEIGHTS_NAME).read_bytes()).hexdigest()
    path = folder / MANIFEST_NAME
    text = path.read_text(encoding="utf-8")
    changed, count = re.subn(
        r'^sha256 = "[0-9a-f]{64}"$', f'sha256 = "{sha256}"', text, count=1, flags=re.MULTILINE
    )
    if not count:
        raise ModelFault(f'Model {folder.name}: {MANIFEST_NAME} has no line `sha256 = "..."`')
    path.write_text(changed, encoding="utf-8")
