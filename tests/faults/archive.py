"""A PACS that does as it is told: it keeps what it gets, answers queries and storage commitment,
and can be made to answer the next instances badly.

Made with pynetdicom, unlike the other stand-in PACS, which is an Orthanc.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, AllStoragePresentationContexts, build_context, build_role, evt
from pynetdicom.events import Event

from tests.orthanc_server import free_port

STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
STORAGE_COMMITMENT = "1.2.840.10008.1.20.1"
COMMITMENT_INSTANCE = "1.2.840.10008.1.20.1.1"
VERIFICATION = "1.2.840.10008.1.1"
_NO_SUCH_OBJECT = 0x0112  # PS3.3 C.14.1.1
#: How long a PACS thinks before it reports on an association of its own.
_REPORTS_AFTER_S = 0.3


@dataclass
class Mood:
    """What is wrong with the archive, and how many answers it lasts."""

    status: int = 0x0000
    keeps: bool = True
    answers: int = 0
    rejects: int = 0  #: associations to reject
    permanently: bool = False
    silent: bool = False  #: takes requests for commitment, and never reports
    hits: int = 0  #: how often it was bad


@dataclass
class Kept:
    """One instance that the archive holds."""

    dataset: Dataset
    received: int = 1
    at: float = field(default_factory=time.time)


class Archive:
    """AE title ``ARCHIVE``; reports storage commitment to AE title ``SEGNODE`` at ``report_to``."""

    ae_title = "ARCHIVE"

    def __init__(self, report_to: int) -> None:
        self.dicom_port = free_port()
        self.kept: dict[str, Kept] = {}
        self.mood = Mood()
        self._report_to = report_to
        self._lock = threading.Lock()
        self._server: Any = None

    def __enter__(self) -> Archive:
        entity = AE(ae_title=self.ae_title)
        entity.maximum_associations = 50
        syntaxes = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
        for context in AllStoragePresentationContexts:
            entity.add_supported_context(context.abstract_syntax, syntaxes)
        for service in (STUDY_ROOT_FIND, STORAGE_COMMITMENT, VERIFICATION):
            entity.add_supported_context(service, syntaxes)
        self._server = entity.start_server(
            ("127.0.0.1", self.dicom_port),
            block=False,
            evt_handlers=[
                (evt.EVT_REQUESTED, self._on_association),
                (evt.EVT_C_STORE, self._on_store),
                (evt.EVT_C_FIND, self._on_find),
                (evt.EVT_N_ACTION, self._on_commitment),
            ],
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()

    def mend(self) -> None:
        """All is well again."""
        with self._lock:
            self.mood = Mood()

    def of_study(self, study_instance_uid: str) -> dict[str, Dataset]:
        """SOP Instance UID → instance, of what is kept of a study."""
        with self._lock:
            return {
                uid: kept.dataset
                for uid, kept in self.kept.items()
                if kept.dataset.StudyInstanceUID == study_instance_uid
            }

    def _on_association(self, event: Event) -> None:
        with self._lock:
            if not self.mood.rejects:
                return
            self.mood.rejects -= 1
            self.mood.hits += 1
            permanently = self.mood.permanently
        # PS3.8 Table 9-21: permanent, by the user, no reason; or transient, by the provider
        # (presentation), local limit exceeded.
        association = event.assoc
        result, source, reason = (1, 1, 1) if permanently else (2, 3, 2)
        association.acse.send_reject(result, source, reason)
        association.acse.assoc.kill()

    def _on_store(self, event: Event) -> int:
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        uid = str(dataset.SOPInstanceUID)
        with self._lock:
            status, keeps = 0x0000, True
            if self.mood.answers:
                self.mood.answers -= 1
                self.mood.hits += 1
                status, keeps = self.mood.status, self.mood.keeps
            if not keeps:
                return status
            if uid in self.kept:
                self.kept[uid].received += 1
            else:
                self.kept[uid] = Kept(dataset)
        return status

    def _on_find(self, event: Event) -> Iterator[tuple[int, Dataset | None]]:
        wanted = event.identifier
        with self._lock:
            found = [kept.dataset for kept in self.kept.values()]
        for dataset in found:
            if all(
                str(dataset.get(keyword)) == str(wanted.get(keyword))
                for keyword in ("StudyInstanceUID", "SeriesInstanceUID")
                if wanted.get(keyword)
            ):
                answer = Dataset()
                for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
                    setattr(answer, keyword, dataset.get(keyword))
                answer.QueryRetrieveLevel = wanted.QueryRetrieveLevel
                yield 0xFF00, answer
        yield 0x0000, None

    def _on_commitment(self, event: Event) -> tuple[int, Dataset | None]:
        if self.mood.silent:
            self.mood.hits += 1
        else:
            asked = event.action_information
            threading.Thread(target=self._report, args=(asked,), daemon=True).start()
        return 0x0000, None

    def _report(self, asked: Dataset) -> None:
        """N-EVENT-REPORT on an association that the archive opens itself (PS3.4 J.3.3)."""
        time.sleep(_REPORTS_AFTER_S)
        held, missing = [], []
        with self._lock:
            for item in asked.ReferencedSOPSequence:
                (held if str(item.ReferencedSOPInstanceUID) in self.kept else missing).append(item)
        report = Dataset()
        report.TransactionUID = asked.TransactionUID
        report.ReferencedSOPSequence = held
        if missing:
            for item in missing:
                item.FailureReason = _NO_SUCH_OBJECT
            report.FailedSOPSequence = missing
        entity = AE(ae_title=self.ae_title)
        association = entity.associate(
            "127.0.0.1",
            self._report_to,
            contexts=[build_context(STORAGE_COMMITMENT)],
            ae_title="SEGNODE",
            ext_neg=[build_role(STORAGE_COMMITMENT, scp_role=True)],
        )
        if association.is_established:
            association.send_n_event_report(
                report, 2 if missing else 1, STORAGE_COMMITMENT, COMMITMENT_INSTANCE
            )
            association.release()
