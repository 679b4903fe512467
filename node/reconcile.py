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

from node import log
from node.edges.artifacts import FolderArtifacts
from node.edges.database import Database, in_parts, upsert
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

#: Jobs that this version understands, and those of them that somebody may still go on with.
_KNOWN = sa.and_(JOBS.c.step.in_(_STEPS), JOBS.c.state.in_(_STATES))
_OPEN = sa.and_(_KNOWN, JOBS.c.state.not_in(_ENDED))


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
        unknown, unseen = self._overlooked()
        if unknown or unseen:  # what has just come is still to be read from the feed
            self.pause(_SETTLE_S)
            still_unknown, still_unseen = self._overlooked()
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
        for job in self._jobs(_OPEN, JOBS.c.step.in_(_READS_RECEIVED)):
            if missing := set(job.instance_ids) - self.storage.instances_of(job.series_id):
                yield Disagreement(
                    "Orthanc and ledger",
                    f"job {job.id[:8]} ({job.state}) needs {_some(missing, 'instance')} that "
                    "Orthanc no longer has",
                    f"Send the series again, or `segnode cancel {job.id[:8]}`.",
                )

    def _overlooked(self) -> tuple[set[str], set[str]]:
        """Series that never arrived, and series with instances of which no job was made."""
        unknown, unseen = set[str](), set[str]()
        for held in self.storage.series():
            quiet, seen = self._known_of(list(held))
            unknown |= held.keys() - quiet.keys()
            unseen |= {one for one in held if quiet.get(one) and held[one] - seen[one]}
        return unknown, unseen

    def _known_of(
        self, series_ids: Sequence[str]
    ) -> tuple[Mapping[str, bool], Mapping[str, set[str]]]:
        """Of those that have arrived: whether they are quiet. And what their jobs have seen."""
        arrived = sa.select(ARRIVALS).where(ARRIVALS.c.series_id.in_(series_ids))
        jobs = sa.select(JOBS.c.series_id, JOBS.c.instance_ids)
        seen: dict[str, set[str]] = defaultdict(set)
        with self.database.transaction() as tx:
            quiet = {row.series_id: bool(row.quiet) for row in tx.execute(arrived)}
            for row in tx.execute(jobs.where(JOBS.c.series_id.in_(series_ids))):
                seen[row.series_id].update(row.instance_ids)
        return quiet, seen

    def unknown_rows(self) -> Iterator[Disagreement]:
        """Jobs in a step or state that this version does not know."""
        for job_id in self._ids(~_KNOWN):
            yield Disagreement(
                "ledger", f"job {job_id[:8]} is in a step or state that nobody here knows",
                "Another version of segnode has written it: run that one, or a newer one.",
            )  # fmt: skip

    def leases(self) -> Iterator[Disagreement]:
        """Jobs that run and whose worker is not there."""
        running = JOBS.c.state == State.RUNNING
        lost = self._ids(running, JOBS.c.lease_until.is_(None))
        if lost:
            yield Disagreement(
                "ledger", f"{_some(lost, 'job')} running without a lease",
                "given one that has run out: the next sweep queues them again",
                partial(self._end_leases, lost),
            )  # fmt: skip
        # 0 is what the repair has given.
        over = JOBS.c.lease_until.between(1, self.database.clock() - _UNSWEPT_S)
        unswept = self._ids(running, over)
        if unswept:
            yield Disagreement(
                "ledger", f"{_some(unswept, 'job')} whose lease ran out unseen by a sweep",
                "The watch does not run: `segnode status`, then `segnode up`.",
            )  # fmt: skip

    def messages(self) -> Iterator[Disagreement]:
        """Messages that would wake nobody, or make a compute worker run for nothing."""
        waiting: list[bytes] = self.broker.lrange(self.compute_queue, 0, -1)  # type: ignore[assignment]
        counts = {queue: int(self.broker.llen(queue)) for queue in self.queues}
        wanted = set(self._ids(JOBS.c.state == State.RUNNING, JOBS.c.step == StepName.INFER))
        useless = [one for one in waiting if _job_of_message(one) not in wanted]
        if useless:
            yield Disagreement(
                "broker and ledger",
                f"{_some(useless, 'message')} in the compute queue for jobs that do not wait there",
                "taken out", partial(self._take_out, useless),
            )  # fmt: skip
        open_jobs = len(self._ids(_OPEN))
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
        nobodys = sorted(folders.difference(self._ids()))
        if nobodys:
            yield Disagreement(
                "artifacts and ledger", f"{_some(nobodys, 'folder')} of no job", "deleted",
                partial(_each, self.artifacts.delete, [(f"{one}/",) for one in nobodys]),
            )  # fmt: skip
        for job_id in self._ids(_OPEN, JOBS.c.step.in_(_READS_DEIDENTIFIED)):
            if not self.artifacts.names(f"{job_id}/instances/"):
                yield Disagreement(
                    "artifacts and ledger",
                    f"the de-identified instances of job {job_id[:8]} are gone",
                    f"They are made again when its step runs. If it stands: `segnode retry "
                    f"{job_id[:8]}`.",
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
        needed = set(self._ids(JOBS.c.state.not_in(_OVER)))
        useless = [one for one in outbound if one[1].split("-")[1] not in needed]
        if useless:
            yield Disagreement(
                "vault and ledger",
                f"{_some(useless, 'outbound object')} of jobs that deliver nothing any more",
                "deleted", partial(_each, self.vault.delete, useless),
            )  # fmt: skip
        for job in self._jobs(_OPEN, JOBS.c.step.in_(_NEEDS_CROSSWALK)):
            crosswalk = job.facts.get("crosswalk")
            if crosswalk and crosswalk not in self.vault.names(job.facts["study"]):
                yield Disagreement(
                    "vault and ledger",
                    f"the crosswalk of job {job.id[:8]} is not in the vault: its results cannot "
                    "be led back to the patient",
                    "Put the vault back from its backup; or cancel the job and process the study "
                    "again.",
                )

    def results(self) -> Iterator[Disagreement]:
        """Results that a PACS has proven to keep, and does not have any more: a sample."""
        confirmed = sa.and_(_KNOWN, JOBS.c.state == State.CONFIRMED)
        newest = list(self._jobs(JOBS.c.id.in_(self._ids(confirmed, newest=_SAMPLE))))
        for name, pacs in self.destinations.items():
            for job in newest:
                delivery = read_deliveries(job).get(name)
                if delivery is None or delivery.state is not DeliveryState.CONFIRMED:
                    continue
                if name in replaced_at(job, self._jobs(_KNOWN, JOBS.c.series_id == job.series_id)):
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

    def _ids(self, *conditions: sa.ColumnElement[bool], newest: int | None = None) -> list[str]:
        """The jobs that fulfil all conditions, those that changed last first."""
        query = sa.select(JOBS.c.id).where(*conditions).order_by(JOBS.c.updated_at.desc())
        with self.database.transaction() as tx:
            return list(tx.scalars(query.limit(newest)))

    def _jobs(self, *conditions: sa.ColumnElement[bool]) -> Iterator[Job]:
        """The same, whole. A job remembers every instance it has seen: few are read at once."""
        for some in in_parts(self._ids(*conditions)):
            query = sa.select(JOBS).where(JOBS.c.id.in_(some), *conditions)
            with self.database.transaction() as tx:
                rows = tx.execute(query.order_by(JOBS.c.updated_at.desc())).all()
            yield from (job_of(row._mapping) for row in rows)

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
