"""Infer: de-identified instances become a label map. Runs where nobody knows the patient."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError

from node.errors import DamagedArtifact, DamagedInstance, EmptyResult, ModelFault, Rejected
from node.foreign.model import CommandModel
from node.imaging.arriving import ArrivingVolume
from node.imaging.decoding import Decoders
from node.imaging.radiograph import radiograph_from
from node.imaging.suitability import require_suitable
from node.imaging.views import choose_radiograph
from node.imaging.volume import series_geometry
from node.packages import Model
from node.pipeline.working_data import (
    LABEL_MAP_FILE,
    MEASUREMENTS_FILE,
    instances_folder,
    label_map_folder,
)
from node.ports import Artifacts
from node.radiographs import RadiographModel
from node.results.measurements import as_json, measure_case
from node.sdk import LabelMap, Radiograph, Volume
from node.segmentation import VolumeModel


def infer(
    artifacts: Artifacts,
    job_id: str,
    instances_digest: str,
    model: Model,
    report: Callable[[float], None],
    decoders: Decoders | None = None,
) -> str:
    """Segment a bundle of instances with ``model``; the digest of the bundle that it leaves.

    In that are ``label_map.npz`` (``labels`` uint8, shape (slices, rows, columns), or (1, rows,
    columns) of the frontal radiograph, and ``sop_instance_uids`` in slice order, pseudonymous) and
    ``measurements.json``. ``report`` is called with the share done, 0 to 1. ``decoders`` decode
    the slices to come while the network has the first; without them it waits for each.

    Raises
    ------
    DamagedArtifact
        The instances are not what ``deidentify`` has written.
    UnsuitableInput, GeometryError, UnsupportedTransferSyntax, DamagedInstance
        The series cannot be segmented by this model.
    EmptyResult
        None of the model's segments is in the series.
    ModelFault, ProgramFailed
        The model broke its own contract.
    ProgramInterrupted, OutOfSpace
        A program that is the model has to be run again.
    """
    streams = artifacts.bundle(instances_folder(job_id), instances_digest).contents()
    case: Volume | Radiograph
    try:
        if isinstance(model, RadiographModel):
            label_map, case = _radiograph(model, streams, report)
        else:
            label_map, case = _volume(model, streams, report, decoders or Decoders(0))
    except (MemoryError, Rejected):
        raise
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ModelFault(
            f"Model {model.manifest.name} failed on this series ({type(error).__name__})"
        ) from error
    if not label_map.array.any():
        labels = ", ".join(segment.label for segment in model.manifest.segments)
        raise EmptyResult(f"Model {model.manifest.name} found none of: {labels}")
    with artifacts.writing(label_map_folder(job_id, instances_digest)) as bundle:
        bundle.add(MEASUREMENTS_FILE, _measurements(model, case, label_map))
        bundle.add(LABEL_MAP_FILE, _packed(label_map))
    return bundle.digest


def already_inferred(artifacts: Artifacts, job_id: str, instances_digest: str) -> str | None:
    """The bundle that an earlier run of the same job has left, if it is whole.

    Its message home may have been lost; a model may take minutes.
    """
    folder = label_map_folder(job_id, instances_digest)
    for digest in artifacts.bundles(folder):
        try:
            artifacts.bundle(folder, digest).contents()
        except DamagedArtifact:
            continue
        return digest
    return None


def _radiograph(
    model: RadiographModel, streams: Sequence[bytes], report: Callable[[float], None]
) -> tuple[LabelMap, Radiograph]:
    """The one frontal radiograph of the series."""
    instances = _read(streams, pixels=True)
    chosen = choose_radiograph(model.manifest.input, instances)
    radiograph = radiograph_from(instances[chosen.index])
    return model.segment(radiograph, report), radiograph


def _volume(
    model: VolumeModel | CommandModel,
    streams: Sequence[bytes],
    report: Callable[[float], None],
    decoders: Decoders,
) -> tuple[LabelMap, Volume]:
    """All slices; the first are in the network while the next are decoded."""
    headers = _read(streams, pixels=False)
    geometry = series_geometry(headers)
    require_suitable(model.manifest.input, headers, geometry)
    arriving = ArrivingVolume(geometry, headers, streams, decoders)
    try:
        if isinstance(model, CommandModel):
            volume = arriving.complete()
            return model.segment(volume, report, _read(streams, pixels=True)), volume
        return model.segment(arriving, report), arriving.complete()
    finally:
        arriving.cancel()


def _read(streams: Sequence[bytes], *, pixels: bool) -> list[Dataset]:
    instances: list[Dataset] = []
    for position, stream in enumerate(streams, start=1):
        try:
            instances.append(dcmread(io.BytesIO(stream), stop_before_pixels=not pixels))
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


def _measurements(model: Model, case: Volume | Radiograph, label_map: LabelMap) -> bytes:
    """Which model it was, and what :mod:`node.results.measurements` says of it."""
    manifest = model.manifest
    labels, segments = manifest.settled(label_map.array)
    settled = LabelMap(labels, label_map.sop_instance_uids)
    document = {
        "model": {"name": manifest.name, "version": manifest.version, "digest": manifest.digest},
        "engine": _engine(model),
        "segments": as_json(measure_case(case, settled, segments)),
    }
    return json.dumps(document, indent=1, sort_keys=True).encode()


def _engine(model: Model) -> dict[str, str]:
    """What computed, and how exactly."""
    if isinstance(model, CommandModel):
        return {"name": "command"}
    return asdict(model.runtime.engine)
