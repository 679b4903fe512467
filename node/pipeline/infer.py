"""Infer: de-identified instances become a label map. Runs where nobody knows the patient."""

from __future__ import annotations

import io
import json
from collections.abc import Callable

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError

from node.errors import DamagedInstance, EmptyResult, ModelFault, Rejected
from node.foreign.model import CommandModel
from node.imaging.suitability import require_suitable
from node.imaging.volume import series_geometry, volume_from_series
from node.packages import Model
from node.ports import Artifacts
from node.sdk import LabelMap, Volume


def infer(
    artifacts: Artifacts,
    folder: str,
    model: Model,
    report: Callable[[float], None],
) -> None:
    """Segment the series in ``folder`` with ``model``; running it again changes nothing.

    Reads ``{folder}/instances/*.dcm``. Writes ``{folder}/label_map.npz`` (``labels`` uint8, shape
    (slices, rows, columns), and ``sop_instance_uids`` in slice order, pseudonymous) and
    ``{folder}/measurements.json``. ``report`` is called with the share done, 0 to 1.

    Raises
    ------
    UnsuitableInput, GeometryError, UnsupportedTransferSyntax, DamagedInstance
        The series cannot be segmented by this model.
    EmptyResult
        None of the model's segments is in the series.
    ModelFault, ProgramFailed
        The model broke its own contract.
    ProgramInterrupted, OutOfSpace
        A program that is the model has to be run again.
    """
    instances = _instances(artifacts, folder)
    require_suitable(model.manifest.input, instances, series_geometry(instances))
    volume = volume_from_series(instances)
    try:
        if isinstance(model, CommandModel):
            label_map = model.segment(volume, report, instances)
        else:
            del instances
            label_map = model.segment(volume, report)
    except (MemoryError, Rejected):
        raise
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ModelFault(
            f"Model {model.manifest.name} failed on this series ({type(error).__name__})"
        ) from error
    if not label_map.array.any():
        labels = ", ".join(segment.label for segment in model.manifest.segments)
        raise EmptyResult(f"Model {model.manifest.name} found none of: {labels}")
    artifacts.put(f"{folder}/measurements.json", _measurements(model, volume, label_map))
    # Last, because its presence says that the step is done.
    artifacts.put(f"{folder}/label_map.npz", _packed(label_map))


def _instances(artifacts: Artifacts, folder: str) -> list[Dataset]:
    instances: list[Dataset] = []
    for position, name in enumerate(artifacts.names(f"{folder}/instances/"), start=1):
        try:
            instances.append(dcmread(io.BytesIO(artifacts.get(name))))
        except (InvalidDicomError, EOFError, ValueError) as error:
            raise DamagedInstance(
                f"Instance {position} cannot be read as DICOM ({type(error).__name__})"
            ) from None
    return instances


def _packed(label_map: LabelMap) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        labels=label_map.array,
        sop_instance_uids=np.array(label_map.sop_instance_uids),
    )
    return buffer.getvalue()


def _measurements(model: Model | CommandModel, volume: Volume, label_map: LabelMap) -> bytes:
    """Per segment: voxels, volume and the slices that it spans (indices in slice order)."""
    manifest = model.manifest
    segments = []
    for segment in manifest.segments:
        per_slice = (label_map.array == segment.number).sum(axis=(1, 2))
        voxels = int(per_slice.sum())
        slices = np.flatnonzero(per_slice)
        segments.append(
            {
                "number": segment.number,
                "label": segment.label,
                "voxels": voxels,
                "volume_ml": round(voxels * volume.voxel_ml, 3),
                "first_slice": int(slices[0]) if voxels else None,
                "last_slice": int(slices[-1]) if voxels else None,
            }
        )
    document = {
        "model": {"name": manifest.name, "version": manifest.version, "digest": manifest.digest},
        "segments": segments,
    }
    return json.dumps(document, indent=1, sort_keys=True).encode()
