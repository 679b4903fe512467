"""What the reports of a result share: who made them and when, and the same words for people."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any

from highdicom.base import SOPClass
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from node.results.measurements import (
    ProjectedMeasurements,
    SegmentMeasurements,
    share_in_words,
    volume_in_words,
)
from node.results.seg import MANUFACTURER, Algorithm, processing_equipment
from node.results.uids import ResultIdentity

NOTICE = "AI result, not for diagnosis"

_TIMES = (
    ("InstanceCreationDate", "InstanceCreationTime"),
    ("SeriesDate", "SeriesTime"),
    ("ContentDate", "ContentTime"),
    ("DateOfSecondaryCapture", "TimeOfSecondaryCapture"),
)


def statements(
    found: SegmentMeasurements | ProjectedMeasurements, source_instances: Sequence[Dataset]
) -> list[str]:
    """What was measured of a segment, for a person; ASCII, says so when it was not found."""
    if isinstance(found, ProjectedMeasurements):
        return [share_in_words(found.share)]
    if not found.is_present:
        return ["not found"]
    said = [f"volume {volume_in_words(found.volume_ml)}"]
    if found.mean is not None and found.standard_deviation is not None:
        ct = source_instances[0].Modality == "CT"
        name, unit = ("attenuation", " HU") if ct else ("signal", "")
        said.append(f"{name} {found.mean:.0f} +/- {found.standard_deviation:.0f}{unit}")
    if found.diameter_mm is not None:
        said.append(f"largest diameter {found.diameter_mm:.0f} mm")
    first, last = slice_numbers(found, source_instances)
    if first is not None and last is not None:
        said.append(f"images {min(first, last)} to {max(first, last)}")
    return said


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
    result.SeriesDate = result.SeriesTime = None
    for pair in _TIMES:
        for keyword, form in zip(pair, ("%Y%m%d", "%H%M%S"), strict=True):
            if keyword in result:
                setattr(result, keyword, created.strftime(form))


def new_document(
    sop_class_uid: str, modality: str, source: Dataset, identity: ResultIdentity
) -> Dataset:
    """Patient, study, series and SOP common of a kind that highdicom has no class for."""
    return SOPClass(
        series_instance_uid=identity.series_instance_uid,
        series_number=identity.series_number,
        sop_instance_uid=identity.sop_instance_uid,
        sop_class_uid=sop_class_uid,
        instance_number=1,
        modality=modality,
        manufacturer=MANUFACTURER,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **patient_and_study(source),
        specific_character_set="ISO_IR 192",
        series_description=identity.series_description,
    )


def patient_and_study(source: Dataset) -> dict[str, Any]:
    """What every class of highdicom wants to know of them, by the names of its arguments."""
    return {
        "study_instance_uid": source.StudyInstanceUID,
        "patient_id": source.PatientID,
        "patient_name": source.PatientName,
        "patient_birth_date": source.PatientBirthDate,
        "patient_sex": source.PatientSex,
        "accession_number": source.AccessionNumber,
        "study_id": source.StudyID,
        "study_date": source.StudyDate,
        "study_time": source.StudyTime,
        "referring_physician_name": source.ReferringPhysicianName,
    }


def reference_to(source: Dataset) -> Dataset:
    """SOP Instance Reference Macro (PS3.3 2026b Table 10-11)."""
    item = Dataset()
    item.ReferencedSOPClassUID = source.SOPClassUID
    item.ReferencedSOPInstanceUID = source.SOPInstanceUID
    return item


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the comments of highdicom and pydicom on values, which they print, out of the log."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
