"""What the reports of a result share: who made them and when, and the same words for people."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO

from pydicom import dcmread
from pydicom.dataset import Dataset

from node.results.measurements import SegmentMeasurements
from node.results.seg import Algorithm, processing_equipment
from node.results.uids import ResultIdentity

NOTICE = "AI result, not for diagnosis"


@dataclass(frozen=True)
class Line:
    """One statement about one segment: what, and how much with its unit."""

    name: str
    value: str


def lines_of(found: SegmentMeasurements, source_instances: Sequence[Dataset]) -> list[Line]:
    """The measurements of a segment in words, ASCII; what was not found says so."""
    if not found.volume_ml:
        return [Line("Volume", "not found")]
    lines = [Line("Volume", f"{found.volume_ml:,.1f} ml")]
    if found.mean is not None and found.standard_deviation is not None:
        ct = source_instances[0].Modality == "CT"
        unit = " HU" if ct else ""
        name = "Attenuation" if ct else "Signal intensity"
        lines.append(Line(name, f"{found.mean:.0f} +/- {found.standard_deviation:.0f}{unit}"))
    if found.diameter_mm is not None:
        lines.append(Line("Largest diameter", f"{found.diameter_mm:.0f} mm"))
    first, last = slice_numbers(found, source_instances)
    if first is not None and last is not None:
        lines.append(Line("Images", f"{min(first, last)} to {max(first, last)}"))
    return lines


def slice_numbers(
    found: SegmentMeasurements, source_instances: Sequence[Dataset]
) -> tuple[int | None, int | None]:
    """InstanceNumber of the first and last slice of a segment: what a viewer calls them."""

    def number(index: int | None) -> int | None:
        value = None if index is None else source_instances[index].get("InstanceNumber")
        return None if value in (None, "") else int(value)

    return number(found.first_slice), number(found.last_slice)


def title_of(algorithm: Algorithm) -> str:
    """What a report is called."""
    return f"{algorithm.name} {algorithm.version}"


def complete_report(report: Dataset, algorithm: Algorithm, identity: ResultIdentity) -> Dataset:
    """The finished object as a receiver reads it, its origin stated."""
    state_origin(report, algorithm, identity)
    stream = BytesIO()
    report.save_as(stream, enforce_file_format=True)
    stream.seek(0)
    return dcmread(stream)


def state_origin(result: Dataset, algorithm: Algorithm, identity: ResultIdentity) -> None:
    """Equipment, software and time; what highdicom read from the clock is the job's instead."""
    created = identity.created
    result.SpecificCharacterSet = "ISO_IR 192"
    result.ManufacturerModelName = algorithm.name
    result.DeviceSerialNumber = algorithm.digest[:16]
    result.SoftwareVersions = [identity.software_version, algorithm.version, algorithm.digest]
    result.ContributingEquipmentSequence = [processing_equipment(algorithm, identity)]
    for what in ("InstanceCreation", "Series", "Content"):
        setattr(result, f"{what}Date", created.strftime("%Y%m%d"))
        setattr(result, f"{what}Time", created.strftime("%H%M%S"))


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the comments of highdicom and pydicom on values, which they print, out of the log."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
