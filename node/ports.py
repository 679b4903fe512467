"""What a pipeline step needs from outside, as Protocols.

A step is a function of a job and these. ``node.edges`` implements them with a real Orthanc, a
folder, a PACS; ``segnode process`` implements them with folders alone. A step that needs something
new says so here first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, Protocol

from node.jobs import Event, Explained, Job, Step, StepName, Wish


class Instances(Protocol):
    """The received instances, kept by Orthanc. Ids are Orthanc's: hashes, not UIDs."""

    def instances_of_series(self, series_id: str) -> tuple[str, ...]:
        """Ids of all instances received for the series, in any order."""

    def instance_header(self, instance_id: str) -> bytes:
        """The instance as a Part 10 stream that may end before its pixel data."""

    def fetch(self, instance_ids: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Each id with its whole Part 10 stream, in the order asked."""

    def metadata(self, instance_id: str) -> Mapping[str, str]:
        """What Orthanc noted on reception: RemoteAET, RemoteIP, CalledAET, Origin."""


class Bundle(Protocol):
    """The files that one step has left for the next, read-only and checked."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all files, sorted."""

    def get(self, name: str, at_most: int | None = None) -> bytes:
        """The bytes of one file as they were written, and no more; DamagedArtifact otherwise."""

    def contents(self) -> list[bytes]:
        """The bytes of all files, in the order of ``names``; DamagedArtifact otherwise."""


class BundleWriter(Protocol):
    """A bundle while it is written; nobody else sees it."""

    digest: str
    """SHA-256 of names and contents, once it is whole: what the ledger remembers."""

    def add(self, name: str, data: bytes) -> None:
        """Write one file."""


class Artifacts(Protocol):
    """De-identified working data: bundles that steps leave for steps, and single files by name.

    A bundle is found by its digest, so a step reads exactly what the step before has made and
    nothing that a worker which woke too late, or a failing disk, has put there.
    """

    def writing(self, folder: str) -> AbstractContextManager[BundleWriter]:
        """A new bundle below ``folder``: durable and whole after the block, or not there."""

    def bundle(self, folder: str, digest: str) -> Bundle:
        """The bundle of that digest below ``folder``; DamagedArtifact if it is not there."""

    def bundles(self, folder: str) -> list[str]:
        """Digests of all bundles below ``folder``; some may be damaged."""

    def put(self, name: str, data: bytes) -> None:
        """Store so that a reader sees all of it or nothing."""

    def get(self, name: str) -> bytes:
        """The bytes of ``name``; KeyError when there is none."""

    def names(self, prefix: str) -> list[str]:
        """All names below ``prefix``, sorted."""

    def delete(self, prefix: str) -> None:
        """Remove everything below ``prefix``; nothing there is no error."""


class SealedNames(Protocol):
    """The vault as it is emptied."""

    def names(self, study: str) -> list[str]:
        """All records of the study."""

    def delete(self, study: str, record_type: str) -> None:
        """Remove one record; none there is no error."""


class SealedRecords(SealedNames, Protocol):
    """The vault as steps use it: encrypted records, kept per pseudonymous study."""

    def seal(self, study: str, record_type: str, data: bytes) -> None:
        """Encrypt and store, replacing a record of the same type."""

    def seal_once(self, study: str, kind: str, data: bytes) -> str:
        """Encrypt and store under a name made of the data; nothing is written twice."""

    def open(self, study: str, record_type: str) -> bytes:
        """Decrypt and authenticate one record."""

    def remember(self, study: str, keyword: str, value: str) -> None:
        """Let the study be found by an original identifier, which is not stored."""


class Answer(StrEnum):
    """What an answer makes the sender do."""

    ACCEPTED = "accepted"
    WARNING = "accepted with a warning"
    TRY_AGAIN = "try again"  #: this one later; the others may go
    BUSY = "busy"  #: this one and the others later
    REFUSED = "refused"


@dataclass(frozen=True)
class StoreStatus:
    """How a destination answered one instance (PS3.4 B.2.3, PS3.18 10.5).

    ``said`` is the answer in words, with its code: ``status 0xA700, out of resources``. ``status``
    is None where there was no answer. ``unsure``: it was sent, and may have arrived.
    """

    sop_instance_uid: str
    answer: Answer
    said: str
    status: int | None = None
    unsure: bool = False

    @property
    def accepted(self) -> bool:
        """The destination has it."""
        return self.answer in (Answer.ACCEPTED, Answer.WARNING)


class Pacs(Protocol):
    """One destination, by DIMSE or DICOMweb."""

    def echo(self) -> None:
        """Return when the destination answers; PacsUnavailable or DeliveryRefused otherwise."""

    def store(self, instances: Sequence[bytes]) -> tuple[StoreStatus, ...]:
        """Send Part 10 streams; one status each, in order, also when it breaks off in between.

        PacsUnavailable: nothing was sent, unless it says so; try again. DeliveryRefused: it does
        not talk to us.
        """

    def find_instances(self, study_instance_uid: str, series_instance_uid: str) -> frozenset[str]:
        """SOP Instance UIDs that the destination says it holds of that series."""


class Source(Protocol):
    """Where a series came from: a PACS that may hold more of it than has arrived.

    Each raises PacsUnavailable or DeliveryRefused where it does not answer or does not do it.
    """

    @property
    def name(self) -> str:
        """The peer's name in the settings."""

    def count_instances(self, study_instance_uid: str, series_instance_uid: str) -> int | None:
        """How many it holds; None when it does not count, 0 when it has none of the series."""

    def find_instances(self, study_instance_uid: str, series_instance_uid: str) -> frozenset[str]:
        """SOP Instance UIDs that it holds."""

    def send(
        self, study_instance_uid: str, series_instance_uid: str, sop_instance_uids: Sequence[str]
    ) -> int:
        """Have it send these, or the whole series where none are named; how many it sent.

        They arrive like anything else, and are no part of the running job.
        """


@dataclass(frozen=True)
class CommitmentReport:
    """What is known of one storage commitment transaction (PS3.4 Annex J)."""

    status: Literal["pending", "success", "failure", "lost"]
    failed_sop_instance_uids: tuple[str, ...] = ()


class StorageCommitment(Protocol):
    """Storage commitment asked in the name of the AE title that the PACS knows: Orthanc's."""

    def request_commitment(self, destination: str, references: Sequence[tuple[str, str]]) -> str:
        """Ask for (SOP Class UID, SOP Instance UID) pairs; the transaction's id."""

    def commitment(self, transaction_id: str) -> CommitmentReport:
        """The state of a transaction; ``lost`` when nobody knows it any more."""


class Leases(Protocol):
    """The part of the ledger that a running step needs."""

    def claim_next(
        self, steps: Sequence[Step], lease_s: float, at_most: int | None = None
    ) -> Job | None:
        """Take the job whose turn it is at one of these steps; None when there is none."""

    def extend(self, job: Job, lease_s: float, progress: float | None = None) -> bool:
        """Keep the lease; False when it is no longer ours."""

    def note(self, job: Job, facts: Mapping[str, Any]) -> bool:
        """Keep what a step has reached so far; False when it is no longer ours."""

    def finish(self, job: Job, facts: Mapping[str, Any]) -> Job | None:
        """The step is done, the next one is due; None when it was no longer ours."""

    def redirect(
        self, job: Job, step: StepName, facts: Mapping[str, Any], cause: str
    ) -> Job | None:
        """The job goes on at ``step``, fresh; None when it was no longer ours."""

    def fork(self, job: Job, wishes: Sequence[Wish]) -> list[Job]:
        """Route is done: one job for each wish."""

    def wait(
        self,
        job: Job,
        *,
        cause: str,
        remedy: str,
        error: str,
        delay_s: float,
        facts: Mapping[str, Any] | None = None,
        patience_s: float | None = None,
    ) -> None:
        """Try the step again after a while; not for longer than ``patience_s`` in all."""

    def end(
        self, job: Job, event: Event, *, cause: str, remedy: str, error: str,
        facts: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Stop the job, with its cause and remedy; ``facts`` are added to its own."""

    def explained(self, job: Job, done: Explained) -> None:
        """Stop a job whose destinations were told why it has no result."""
