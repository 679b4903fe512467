"""The rejection note: tells an archive that earlier results have been replaced by better ones.

IHE RAD TF-2 4.66 (Imaging Object Change Management, IOCM) makes it a Key Object Selection Document
whose title says why. Of the four titles that IOCM knows, **113001 Rejected for Quality Reasons** is
what is true here: the earlier result is of the right patient and study, and was made of fewer
images. 113037 (patient safety) would report an incident, 113038 (worklist entry) a wrong identity,
113039 (retention) lets an archive delete. An archive hides what is rejected for quality, or goes on
showing it where a site has configured that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from highdicom.ko import KeyObjectSelection, KeyObjectSelectionDocument
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from node.kinds import ResultKind
from node.results.objects import Origin
from node.results.report import complete_report, quiet
from node.results.seg import MANUFACTURER, Algorithm
from node.results.source import named
from node.results.sr import device_observer
from node.results.uids import ResultIdentity

TITLE = codes.DCM.RejectedForQualityReasons
_IMAGES = tuple(
    kind.sop_class_uid for kind in (ResultKind.SEG, ResultKind.LABELMAP, ResultKind.CAPTURE)
)


@dataclass(frozen=True)
class Replaced:
    """One earlier object of ours: what the note refers to."""

    sop_class_uid: str
    series_instance_uid: str
    sop_instance_uid: str


def encode_rejection(
    replaced: Sequence[Replaced],
    source_instances: Sequence[Dataset],
    algorithm: Algorithm,
    identity: ResultIdentity,
) -> Dataset:
    """A Key Object Selection Document that rejects ``replaced``, and names nothing else.

    Parameters
    ----------
    source_instances
        De-identified headers of the series: patient and study come from the first.

    References
    ----------
    PS3.3 2026b A.35.4 (Key Object Selection Document); PS3.16 2026b TID 2010, CID 7010;
    IHE RAD TF-2 4.66.4.1.2.
    """
    (first, *_) = named(source_instances)
    with quiet():
        referenced = [_referenced(one, first) for one in replaced]
        content = KeyObjectSelection(
            TITLE,
            referenced,
            observer_device_context=device_observer(algorithm),
            description="Superseded: more images of the series have arrived since",
        )
        note = KeyObjectSelectionDocument(
            referenced,
            content,
            series_instance_uid=identity.series_instance_uid,
            series_number=identity.series_number,
            sop_instance_uid=identity.sop_instance_uid,
            instance_number=1,
            manufacturer=MANUFACTURER,
            series_description=identity.series_description,
        )
    return complete_report(note, algorithm, identity)


def _referenced(one: Replaced, like: Dataset) -> Dataset:
    """The header of an earlier object, as far as a reference needs it."""
    header = Dataset()
    for keyword in _PATIENT_AND_STUDY:
        setattr(header, keyword, like.get(keyword))
    header.SOPClassUID, header.SOPInstanceUID = one.sop_class_uid, one.sop_instance_uid
    header.SeriesInstanceUID = one.series_instance_uid
    if one.sop_class_uid in _IMAGES:  # decides whether the reference is of value type IMAGE
        header.Rows, header.Columns = like.get("Rows"), like.get("Columns")
    return header


_PATIENT_AND_STUDY = (
    "SpecificCharacterSet",
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)


def rejection(
    replaced: Sequence[Replaced], destination: str, sources: Sequence[Dataset], origin: Origin
) -> Dataset:
    """The note for one destination: of what it has taken, and with a UID that says of what."""
    identity = origin.identity(ResultKind.REJECTION, sources[0])
    about = "\n".join([destination, *(one.sop_instance_uid for one in replaced)])
    own = replace(
        identity,
        series_instance_uid=identity.uid(f"rejection:{destination}:series"),
        sop_instance_uid=identity.uid(f"rejection:{about}"),
    )
    return encode_rejection(replaced, sources, origin.algorithm, own)
