"""The reconciler: where Orthanc, ledger, broker, artifacts, vault and PACS say different things.

Each kind of disagreement is one method below, told in one sentence and mended where that is safe:
a repair deletes nothing that cannot be made again, and runs beside a working node. What needs a
person says what to do. `segnode doctor` looks, `segnode doctor --repair` and, once a day, the watch
also mend.
"""

from __future__ import annotations

import base64
import json
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import redis
import sqlalchemy as sa
from sqlalchemy.engine import RowMapping

from node import log
from node.edges.artifacts import FolderArtifacts
from node.edges.database import Database, upsert
from node.edges.ledger_tables import ARRIVALS, JOBS, job_of
from node.edges.lost_instances import LostInstances
from node.edges.orthanc_storage import OrthancStorage
from node.errors import NodeError
from node.jobs import Job, State, StepName
from node.pipeline.delivery import DeliveryState, read_deliveries
from node.pipeline.outbound import outgoing
from node.pipeline.replaced import replaced_at
from node.ports import Pacs, SealedNames

#: A lease that ran out so long ago has met no sweep.
_UNSWEPT_S = 300.0
#: What has just arrived has this long to be read from the feed.
_SETTLE_S = 3.0
#: So many of the newest confirmed jobs are looked for in the PACS.
_SAMPLE = 20
#: Wake-ups beyond this, and beyond the open jobs, serve nobody.
_MANY_MESSAGES = 1000
_STEPS, _STATES = frozenset(map(str, StepName)), frozenset(map(str, State))
#: Nobody goes on with these. Every other state may.
_OVER = frozenset({State.CONFIRMED, State.SUPERSEDED})
_ENDED = _OVER | {State.REJECTED, State.CANCELED}
#: Steps that read the received instances, and steps that read the de-identified ones.
_READS_RECEIVED = frozenset({StepName.RECEIVE, StepName.ROUTE, StepName.DEIDENTIFY})
_READS_DEIDENTIFIED = frozenset({StepName.INFER, StepName.ENCODE})
_NEEDS_CROSSWALK = frozenset(list(StepName)[list(StepName).index(StepName.INFER) :])


@dataclass(frozen=True)
class Disagreement:
    """Two parts that say different things.

    ``remedy`` is what ``repair`` does; without one, what a person can do. What is not ``grave`` may
    be as somebody wanted it.
    """

    between: str
    found: str
    remedy: str
    repair: Callable[[], object] | None = None
    grave: bool = True

    @property
    def outcome(self) -> str:
        """``repaired`` if it is mended when it is found, ``reported`` if a person has to."""
        return "repaired" if self.repair else "reported"


@dataclass(frozen=True)
class Reconciler:
    """Compares the parts of one node. Every method yields what it finds, and changes nothing.

    The node goes on meanwhile. So each method looks at the other part first and at the ledger
    after it: whatever lies there for a job was put there after the ledger knew of the job.
    """

    database: Database
    storage: OrthancStorage
    artifacts: FolderArtifacts
    vault: SealedNames
    vault_studies: Callable[[], Sequence[str]]
    broker: redis.Redis
    queues: Sequence[str]
    compute_queue: str
    destinations: Mapping[str, Pacs]
    study_instance_uid: Callable[[Job], str]
    pause: Callable[[float], None] = time.sleep

    def disagreements(self) -> Iterator[Disagreement]:
        """All of them; a part that does not answer is one."""
        for name, look in (
            ("ledger", self.unknown_rows),
            ("Orthanc", self.files),
            ("Orthanc and ledger", self.series),
            ("ledger", self.leases),
            ("broker and ledger", self.messages),
            ("artifacts and ledger", self.folders),
            ("vault and ledger", self.records),
            ("PACS and ledger", self.results),
        ):
            try:
                yield from look()
            except NodeError as error:
                yield Disagreement(name, f"not compared: {error}", error.remedy)
            except redis.RedisError as error:
                found = f"not compared: the broker does not answer ({type(error).__name__})"
                yield Disagreement(name, found, "Start it with `segnode up`.")

    def files(self) -> Iterator[Disagreement]:
        """Orthanc's files and its index."""
        state = self.storage.state()
        if state.orphans:
            yield Disagreement(
                "Orthanc", f"{_some(state.orphans, 'received file')} not in its index",
                "imported again", self.storage.restore,
            )  # fmt: skip
        gone = [one for one in state.fileless if self.storage.is_fileless(one)]
        lost = LostInstances(self.database, self.storage)
        if gone:
            yield Disagreement(
                "Orthanc", f"{_some(gone, 'instance')} in its index without a file",
                "taken out of the index: send their series again", partial(lost.take_out, gone),
            )  # fmt: skip
        for one in lost.missing():
            yield Disagreement(
                "Orthanc",
                f"{_some(one.instance_ids, 'received instance')} of series {one.series_id} lost "
                "with the file",
                "Send the series again. Orthanc's page of its study, "
                f"/app/explorer.html#study?uuid={one.study_id}, says whose it is; the journal "
                f"remembers the loss (`segnode journal {one.study_id}`).",
                grave=not one.proven,
            )

    def series(self) -> Iterator[Disagreement]:
        """Series that no job is made of, and jobs whose series is gone."""
        held = self.storage.series()
        unknown, unseen = self._overlooked(held)
        if unknown or unseen:  # what has just come is still to be read from the feed
            self.pause(_SETTLE_S)
            still_unknown, still_unseen = self._overlooked(held)
            unknown, unseen = unknown & still_unknown, unseen & still_unseen
        if unknown:
            yield Disagreement(
                "Orthanc and ledger", f"{_some(unknown, 'received series')} never noted as arrived",
                "noted as arrived now", partial(self._note_arrived, sorted(unknown)),
            )  # fmt: skip
        if unseen:
            yield Disagreement(
                "Orthanc and ledger",
                f"{_some(unseen, 'series')} with instances that no job has seen",
                "looked at again as if they had just arrived",
                partial(self._note_arrived, sorted(unseen)),
            )  # fmt: skip
        for job in self._jobs():
            if job.state in _ENDED or job.step not in _READS_RECEIVED:
                continue
            _, instances = held.get(job.series_id, ("", frozenset()))
            if set(job.instance_ids) <= instances:
                continue
            # Some may have come since.
            if missing := set(job.instance_ids) - self.storage.instances_of(job.series_id):
                yield Disagreement(
                    "Orthanc and ledger",
                    f"job {job.id[:8]} ({job.state}) needs {_some(missing, 'instance')} that "
                    "Orthanc no longer has",
                    f"Send the series again, or `segnode cancel {job.id[:8]}`.",
                )

    def _overlooked(
        self, held: Mapping[str, tuple[str, frozenset[str]]]
    ) -> tuple[set[str], set[str]]:
        """Series that never arrived, and series with instances of which no job was made."""
        quiet = self._arrivals()
        seen: dict[str, set[str]] = defaultdict(set)
        for row in self._rows():
            seen[row["series_id"]].update(row["instance_ids"])
        unseen = {
            one for one, (_, instances) in held.items() if quiet.get(one) and instances - seen[one]
        }
        return set(held) - quiet.keys(), unseen

    def unknown_rows(self) -> Iterator[Disagreement]:
        """Jobs in a step or state that this version does not know."""
        for row in self._rows():
            if not _is_known(row):
                yield Disagreement(
                    "ledger", f"job {row['id'][:8]} is in a step or state that nobody here knows",
                    "Another version of segnode has written it: run that one, or a newer one.",
                )  # fmt: skip

    def leases(self) -> Iterator[Disagreement]:
        """Jobs that run and whose worker is not there."""
        now = self.database.clock()
        running = [row for row in self._rows() if row["state"] == State.RUNNING]
        lost = [row["id"] for row in running if row["lease_until"] is None]
        if lost:
            yield Disagreement(
                "ledger", f"{_some(lost, 'job')} running without a lease",
                "given one that has run out: the next sweep queues them again",
                partial(self._end_leases, lost),
            )  # fmt: skip
        unswept = [r for r in running if r["lease_until"] and r["lease_until"] < now - _UNSWEPT_S]
        if unswept:
            yield Disagreement(
                "ledger", f"{_some(unswept, 'job')} whose lease ran out unseen by a sweep",
                "The watch does not run: `segnode status`, then `segnode up`.",
            )  # fmt: skip

    def messages(self) -> Iterator[Disagreement]:
        """Messages that would wake nobody, or make a compute worker run for nothing."""
        waiting: list[bytes] = self.broker.lrange(self.compute_queue, 0, -1)  # type: ignore[assignment]
        counts = {queue: int(self.broker.llen(queue)) for queue in self.queues}
        jobs = self._jobs()
        wanted = {
            job.id for job in jobs if job.state is State.RUNNING and job.step is StepName.INFER
        }
        useless = [one for one in waiting if _job_of_message(one) not in wanted]
        if useless:
            yield Disagreement(
                "broker and ledger",
                f"{_some(useless, 'message')} in the compute queue for jobs that do not wait there",
                "taken out", partial(self._take_out, useless),
            )  # fmt: skip
        open_jobs = sum(job.state not in _ENDED for job in jobs)
        for queue, count in counts.items():
            if queue != self.compute_queue and count > open_jobs + _MANY_MESSAGES:
                yield Disagreement(
                    "broker and ledger",
                    f"{count} wake-ups in the queue {queue} for {open_jobs} open jobs",
                    "dropped: the sweeper sends what is needed", partial(self.broker.delete, queue),
                )  # fmt: skip

    def folders(self) -> Iterator[Disagreement]:
        """Working data of no job, and jobs without theirs."""
        folders = set(self.artifacts.folders())
        nobodys = sorted(folders - {row["id"] for row in self._rows()})
        if nobodys:
            yield Disagreement(
                "artifacts and ledger", f"{_some(nobodys, 'folder')} of no job", "deleted",
                partial(_each, self.artifacts.delete, [(f"{one}/",) for one in nobodys]),
            )  # fmt: skip
        for job in self._jobs():
            open_there = job.state not in _ENDED and job.step in _READS_DEIDENTIFIED
            if open_there and not self.artifacts.names(f"{job.id}/instances/"):
                yield Disagreement(
                    "artifacts and ledger",
                    f"the de-identified instances of job {job.id[:8]} are gone",
                    f"They are made again when its step runs. If it stands: `segnode retry "
                    f"{job.id[:8]}`.",
                    grave=False,
                )

    def records(self) -> Iterator[Disagreement]:
        """Objects that wait in the vault for no delivery, and crosswalks that are gone."""
        outbound = [
            (study, record)
            for study in self.vault_studies()
            for record in self.vault.names(study)
            if record.startswith("outbound-")
        ]
        rows = self._rows()
        needed = {row["id"] for row in rows if row["state"] not in _OVER}
        useless = [one for one in outbound if one[1].split("-")[1] not in needed]
        if useless:
            yield Disagreement(
                "vault and ledger",
                f"{_some(useless, 'outbound object')} of jobs that deliver nothing any more",
                "deleted", partial(_each, self.vault.delete, useless),
            )  # fmt: skip
        for job in map(job_of, filter(_is_known, rows)):
            crosswalk = job.facts.get("crosswalk")
            if job.state in _ENDED or job.step not in _NEEDS_CROSSWALK or not crosswalk:
                continue
            if crosswalk not in self.vault.names(job.facts["study"]):
                yield Disagreement(
                    "vault and ledger",
                    f"the crosswalk of job {job.id[:8]} is not in the vault: its results cannot "
                    "be led back to the patient",
                    "Put the vault back from its backup; or cancel the job and process the study "
                    "again.",
                )

    def results(self) -> Iterator[Disagreement]:
        """Results that a PACS has proven to keep, and does not have any more: a sample."""
        jobs = self._jobs()
        confirmed = [job for job in jobs if job.state is State.CONFIRMED]
        newest = sorted(confirmed, key=lambda job: job.updated_at, reverse=True)[:_SAMPLE]
        for name, pacs in self.destinations.items():
            for job in newest:
                delivery = read_deliveries(job).get(name)
                if delivery is None or delivery.state is not DeliveryState.CONFIRMED:
                    continue
                if name in replaced_at(job, jobs):
                    continue  # it hides them because it was told to
                try:
                    missing = self._missing(job, name, pacs)
                except NodeError as error:
                    found = f"{name} cannot be asked what it keeps: {error}"
                    yield Disagreement("PACS and ledger", found, error.remedy)
                    break
                if missing:
                    yield Disagreement(
                        "PACS and ledger",
                        f"{name} no longer has {_some(missing, 'object')} of job {job.id[:8]}, "
                        "which it has proven to keep",
                        "If it was not deleted there on purpose, have the study processed again.",
                        grave=False,
                    )

    def _missing(self, job: Job, name: str, pacs: Pacs) -> set[str]:
        wanted: dict[str, set[str]] = defaultdict(set)
        for one in outgoing(job, name):
            wanted[one.series_instance_uid].add(one.sop_instance_uid)
        study = self.study_instance_uid(job)
        return {
            uid
            for series, uids in wanted.items()
            for uid in uids - pacs.find_instances(study, series)
        }

    def _rows(self) -> list[RowMapping]:
        with self.database.transaction() as tx:
            return [row._mapping for row in tx.execute(sa.select(JOBS))]

    def _jobs(self) -> list[Job]:
        """Every job that this version understands."""
        return [job_of(row) for row in self._rows() if _is_known(row)]

    def _arrivals(self) -> dict[str, bool]:
        with self.database.transaction() as tx:
            rows = tx.execute(sa.select(ARRIVALS.c.series_id, ARRIVALS.c.quiet)).all()
        return {row.series_id: bool(row.quiet) for row in rows}

    def _note_arrived(self, series_ids: Sequence[str]) -> None:
        now = self.database.clock()
        with self.database.transaction() as tx:
            for one in series_ids:
                upsert(tx, ARRIVALS, {"series_id": one}, {"last_change_at": now, "quiet": False})

    def _take_out(self, messages: Sequence[bytes]) -> None:
        for one in messages:
            self.broker.lrem(self.compute_queue, 1, one)  # type: ignore[arg-type]  # bytes do

    def _end_leases(self, ids: Sequence[str]) -> None:
        without = (JOBS.c.id.in_(ids), JOBS.c.state == State.RUNNING, JOBS.c.lease_until.is_(None))
        with self.database.transaction() as tx:
            tx.execute(sa.update(JOBS).where(*without).values(lease_until=0.0))


def _each(do: Callable[..., object], arguments: Sequence[tuple[str, ...]]) -> None:
    for some in arguments:
        do(*some)


def _is_known(row: RowMapping) -> bool:
    return row["step"] in _STEPS and row["state"] in _STATES


def _job_of_message(message: bytes) -> Any:
    """The job that a message of the compute queue is about; None if it is no such message."""
    try:
        arguments, *_ = json.loads(base64.b64decode(json.loads(message)["body"]))
        return arguments[0]
    except (ValueError, KeyError, IndexError, TypeError):
        return None


def _some(things: Collection[Any], noun: str) -> str:
    plural = noun if noun.endswith("series") else f"{noun}s"
    return f"1 {noun}" if len(things) == 1 else f"{len(things)} {plural}"


def repair_all(reconciler: Reconciler) -> None:
    """Mend what can be mended; the rest is in the log, and `segnode doctor` says what to do."""
    for one in reconciler.disagreements():
        log.get().warning("disagreement", between=one.between, outcome=one.outcome)
        if one.repair:
            one.repair()
