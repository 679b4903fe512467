"""A PACS in pynetdicom that does as a test says: it refuses, hangs, cuts and reports when told."""

from __future__ import annotations

import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dicom_peers import SERIES, STUDY, ct_instance, seg_instance
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SegmentationStorage,
)
from pynetdicom import AE, build_role, evt

from anonymizer.vault import FolderRecords, Keyring, Vault
from node.edges.artifacts import FolderArtifacts
from node.edges.ledger import Ledger
from node.jobs import Job, StepName
from node.pipeline.confirm import confirm
from node.pipeline.deliver import deliver
from node.pipeline.outbound import outbound_record, outgoing
from node.pipeline.proof import Prover
from node.ports import CommitmentReport, Pacs
from tests.ledger_case import Clock, claimed, run_step
from tests.orthanc_server import free_port

STORAGE_COMMITMENT = UID("1.2.840.10008.1.20.1")
_WELL_KNOWN = "1.2.840.10008.1.20.1.1"
_STUDY_ROOT_FIND = UID("1.2.840.10008.5.1.4.1.2.2.1")

#: A mood answers the C-STORE of an instance: with a status, or by doing something worse.
Mood = Callable[[evt.Event, str], int]


def content(event: evt.Event, uid: str) -> int:
    """Takes everything."""
    return 0x0000


def aborting(event: evt.Event, uid: str) -> int:
    """A-ABORT instead of an answer."""
    event.assoc.abort()
    return 0x0000


def cutting(event: evt.Event, uid: str) -> int:
    """The connection is gone, as if somebody had pulled the cable."""
    event.assoc.dul.socket.socket.shutdown(socket.SHUT_RDWR)
    return 0x0000


class MoodyPacs:
    """A storage SCP that holds what it answered with success, and tells by query what it holds."""

    def __init__(
        self,
        *,
        finds: bool = True,
        commits: bool = False,
        port: int | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._tls = tls
        self.port = port or free_port()
        self.mood: Mood = content
        #: SOP Instance UID → how often it was sent.
        self.sent: Counter[str] = Counter()
        self.held: set[str] = set()
        self.associations = 0
        self.transactions: list[tuple[str, list[tuple[str, str]]]] = []
        self._waiting = threading.Event()
        self._entity = AE(ae_title="HOSPITAL")
        services = [CTImageStorage, SegmentationStorage, *([_STUDY_ROOT_FIND] if finds else [])]
        for service in services:
            self._entity.add_supported_context(
                service, [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
            )
        if commits:
            self._entity.add_supported_context(STORAGE_COMMITMENT)

    def __enter__(self) -> MoodyPacs:
        self._server = self._entity.start_server(
            ("127.0.0.1", self.port),
            block=False,
            ssl_context=self._tls,
            evt_handlers=[
                (evt.EVT_C_STORE, self._store),
                (evt.EVT_C_FIND, self._find),
                (evt.EVT_N_ACTION, self._promise),
                (evt.EVT_ACCEPTED, self._count),
            ],
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.set()
        self._server.shutdown()

    def hanging(self, event: evt.Event, uid: str) -> int:
        """No answer, until the test is over."""
        self._waiting.wait(30)
        return 0x0000

    def report(
        self,
        host: str,
        port: int,
        transaction: int = -1,
        failed: Sequence[str] = (),
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """N-EVENT-REPORT on an association of its own, as PS3.4 J.3.3 has it."""
        uid, pairs = self.transactions[transaction]
        information = Dataset()
        information.TransactionUID = uid
        information.ReferencedSOPSequence = Items(
            [_item(*pair) for pair in pairs if pair[1] not in failed]
        )
        if failed:
            information.FailedSOPSequence = Items(
                [_item(*pair, reason=0x0112) for pair in pairs if pair[1] in failed]
            )
        entity = AE(ae_title="HOSPITAL")
        entity.add_requested_context(STORAGE_COMMITMENT)
        role = build_role(STORAGE_COMMITMENT, scu_role=False, scp_role=True)
        association = entity.associate(
            host, port, ae_title="SEGNODE", ext_neg=[role], tls_args=tls and (tls, host)
        )
        assert association.is_established
        try:
            kind = 2 if failed else 1
            status, _ = association.send_n_event_report(
                information, kind, STORAGE_COMMITMENT, _WELL_KNOWN
            )
            assert status.Status == 0x0000
        finally:
            association.release()

    def _count(self, event: evt.Event) -> None:
        self.associations += 1

    def _store(self, event: evt.Event) -> int:
        uid = str(event.request.AffectedSOPInstanceUID)
        self.sent[uid] += 1
        status = self.mood(event, uid)
        if status == 0x0000 or 0xB000 <= status <= 0xBFFF or status == 0x0111:
            self.held.add(uid)
        return status

    def _find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        for uid in sorted(self.held):
            match = Dataset()
            match.QueryRetrieveLevel = "IMAGE"
            match.SeriesInstanceUID = event.identifier.SeriesInstanceUID
            match.SOPInstanceUID = uid
            yield 0xFF00, match

    def _promise(self, event: evt.Event) -> tuple[int, None]:
        wanted = event.action_information
        pairs = [
            (str(item.ReferencedSOPClassUID), str(item.ReferencedSOPInstanceUID))
            for item in wanted.ReferencedSOPSequence
        ]
        self.transactions.append((str(wanted.TransactionUID), pairs))
        return 0x0000, None


def _item(sop_class: str, sop_instance: str, reason: int | None = None) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, sop_instance
    if reason is not None:
        item.FailureReason = reason
    return item


class NoCommitment:
    """``node.ports.StorageCommitment`` for nodes that ask nobody."""

    def request_commitment(self, destination: str, references: Sequence[tuple[str, str]]) -> str:
        raise AssertionError("nobody offers it here")

    def commitment(self, transaction_id: str) -> CommitmentReport:
        raise AssertionError("nobody offers it here")


class Outbox:
    """A job that has come as far as ``deliver``: a ledger, a vault, and its last two steps."""

    SEG = "2.25.7999"

    def __init__(
        self,
        folder: Path,
        destinations: dict[str, Pacs],
        *,
        captures: int = 0,
        seg: bool = True,
        commitment: Any = None,
    ) -> None:
        self.clock = Clock(1_800_000_000.0)
        self.ledger = Ledger(f"sqlite:///{folder / 'ledger.sqlite'}", clock=self.clock)
        self.vault = Vault(FolderRecords(folder / "vault"), Keyring("k", {"k": b"k" * 32}))
        self.artifacts = FolderArtifacts(folder / "artifacts")
        self.captures = [f"2.25.{7000 + number}" for number in range(1, captures + 1)]
        results = []
        if seg:
            results.append(_result("seg", SegmentationStorage, "2.25.73", [self.SEG]))
        if captures:
            results.append(_result("capture", CTImageStorage, SERIES, self.captures))
        kinds = {result["kind"]: 1 for result in results}
        facts = {"study": "S", "results": results, "plan": dict.fromkeys(destinations, kinds)}
        self._open_at_deliver(facts)
        prover = Prover(
            destinations=destinations,
            commitment=commitment or NoCommitment(),
            commits=frozenset(destinations) if commitment else frozenset(),
            study_instance_uid=lambda job: STUDY,
            clock=self.clock,
        )
        self.paused: frozenset[str] = frozenset()
        #: Other jobs of the series, beside what the ledger has.
        self.others: tuple[Job, ...] = ()
        shared = {
            "vault": self.vault, "prover": prover, "note": self.ledger.note,
            "paused": lambda: self.paused, "clock": self.clock,
            "jobs_of_series": lambda _: self.others,
        }  # fmt: skip
        self.steps = {
            StepName.DELIVER: lambda job: deliver(job, destinations=destinations, **shared),
            StepName.CONFIRM: lambda job: confirm(job, artifacts=self.artifacts, **shared),
        }

    @property
    def job(self) -> Job:
        """As the ledger has it."""
        [job] = self.ledger.jobs()
        return job

    def run(self, tries: int = 1) -> Job:
        """Steps until the job has waited ``tries`` times, or ends; time passes as it must."""
        for _ in range(tries):
            while (job := self.job).state in ("queued", "waiting"):
                self.clock.now = max(self.clock.now, job.next_try_at or 0.0)
                if job.step not in self.steps:
                    return job
                run_step(self.ledger, job, self.steps[job.step])
                if self.job.state == "waiting":
                    break
        return self.job

    def delivery(self, name: str) -> dict[str, Any]:
        """The fact of one destination."""
        fact: dict[str, Any] = self.job.facts["delivery"][name]
        return fact

    def _open_at_deliver(self, facts: dict[str, Any]) -> None:
        opened = self.ledger.open_jobs("series", "study", ["one"])
        assert opened is not None
        while opened.step is not StepName.DELIVER:
            following = self.ledger.finish(claimed(self.ledger, opened), facts)
            assert following is not None
            opened = following
        for one in outgoing(opened):
            number = int(one.sop_instance_uid.removeprefix("2.25.")) - 7000
            stream = seg_instance() if one.kind == "seg" else ct_instance(number)
            self.vault.seal("S", outbound_record(opened, one.name), stream)


def _result(kind: str, sop_class: str, series: str, uids: list[str]) -> dict[str, Any]:
    return {
        "kind": kind, "sop_class_uid": sop_class, "series_instance_uid": series,
        "sop_instance_uids": uids,
    }  # fmt: skip
