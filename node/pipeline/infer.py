"""Infer: de-identified instances become a label map. Runs where nobody knows the patient."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError

from node.errors import DamagedInstance, EmptyResult, ModelFault, Rejected
from node.foreign.model import CommandModel
from node.imaging.measurements import measured
from node.imaging.radiograph import radiograph_from
from node.imaging.suitability import require_suitable
from node.imaging.views import choose_radiograph
from node.imaging.volume import series_geometry, volume_from_series
from node.packages import Model
from node.ports import Artifacts
from node.radiographs import RadiographModel
from node.sdk import InputContract, LabelMap, Radiograph, RadiographContract, Volume


def infer(
    artifacts: Artifacts,
    folder: str,
    model: Model,
    report: Callable[[float], None],
) -> None:
    """Segment the series in ``folder`` with ``model``; running it again changes nothing.

    Reads ``{folder}/instances/*.dcm``. Writes ``{folder}/label_map.npz`` (``labels`` uint8, shape
    (slices, rows, columns), or (1, rows, columns) of the frontal radiograph, and
    ``sop_instance_uids`` in slice order, pseudonymous) and
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
    case = _case(model.manifest.input, instances)
    try:
        label_map = _segmented(model, case, instances, report)
    except (MemoryError, Rejected):
        raise
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ModelFault(
            f"Model {model.manifest.name} failed on this series ({type(error).__name__})"
        ) from error
    if not label_map.array.any():
        labels = ", ".join(segment.label for segment in model.manifest.segments)
        raise EmptyResult(f"Model {model.manifest.name} found none of: {labels}")
    artifacts.put(f"{folder}/measurements.json", _measurements(model, case, label_map))
    # Last, because its presence says that the step is done.
    artifacts.put(f"{folder}/label_map.npz", _packed(label_map))


def _case(
    contract: InputContract | RadiographContract, instances: Sequence[Dataset]
) -> Volume | Radiograph:
    """What the model looks at: the volume of all instances, or the one frontal radiograph."""
    if isinstance(contract, RadiographContract):
        return radiograph_from(instances[choose_radiograph(contract, instances).index])
    require_suitable(contract, instances, series_geometry(instances))
    return volume_from_series(instances)


def _segmented(
    model: Model,
    case: Volume | Radiograph,
    instances: list[Dataset],
    report: Callable[[float], None],
) -> LabelMap:
    if isinstance(model, CommandModel):
        assert isinstance(case, Volume)  # noqa: S101 - its manifest has no other contract
        return model.segment(case, report, instances)
    instances.clear()  # their pixels, a second time
    if isinstance(model, RadiographModel):
        assert isinstance(case, Radiograph)  # noqa: S101
        return model.segment(case, report)
    assert isinstance(case, Volume)  # noqa: S101
    return model.segment(case, report)


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


def _measurements(model: Model, case: Volume | Radiograph, label_map: LabelMap) -> bytes:
    """Which model it was, and what :func:`node.imaging.measurements.measured` says of it."""
    manifest = model.manifest
    labels, segments = manifest.settled(label_map.array)
    document = {
        "model": {"name": manifest.name, "version": manifest.version, "digest": manifest.digest},
        "segments": measured(case, labels, segments),
    }
    return json.dumps(document, indent=1, sort_keys=True).encode()
