"""What is freed when nothing needs it any more: working data, and received series.

Nothing here is needed to go on with a job, and nothing goes whose result is not proven delivered: a
job that waits, runs, is held, incomplete or failed keeps everything. Interrupted, it begins again
where it stopped, for what it does is read off what is there. The journal tells of every deletion.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import sqlalchemy as sa

from node import log
from node.edges import journal
from node.edges.artifacts import FolderArtifacts
from node.edges.database import Database, in_parts
from node.edges.journal import Chain
from node.edges.ledger_tables import ARRIVALS, JOBS, LOST, job_of
from node.errors import NoMatchingModel
from node.jobs import Event, Job, State, StepName
from node.pipeline.outbound import unseal
from node.ports import SealedNames

_DAY_S = 86400.0
#: A worker that has just lost its job may still write for a while.
_GRACE_S = 60.0
#: What a person may look at after a job has ended well.
_KEPT = ("overlay.png",)
_STEPS_AFTER_DEIDENTIFY = tuple(StepName)[list(StepName).index(StepName.DEIDENTIFY) + 1 :]


@dataclass(frozen=True)
class Keep:
    """For how many days; None: for ever (:class:`node.settings.Retention`)."""

    confirmed_days: float | None
    unwanted_days: float | None
    stopped_days: float | None


class ReceivedSeries(Protocol):
    """Orthanc as it is emptied."""

    def series_ids(self) -> list[str]:
        """Ids of all series."""

    def instances_of(self, series_id: str) -> frozenset[str]:
        """Ids of the instances of a series; none if it is not there."""

    def delete_instances(self, instance_ids: Sequence[str]) -> None:
        """Remove instances."""


class Retention:
    """Frees what nothing needs any more, by the ledger and the site's rules."""

    def __init__(
        self,
        database: Database,
        artifacts: FolderArtifacts,
        vault: SealedNames,
        received: ReceivedSeries,
        keep: Keep,
    ) -> None:
        self._database, self._artifacts, self._vault = database, artifacts, vault
        self._received, self._keep = received, keep

    def free_working_data(self) -> int:
        """Remove the working data of jobs that have ended; of how many."""
        freed = 0
        for job in self._with_more_than_is_kept():
            if not self._is_over(job) or not self._leftovers(job):
                continue
            if not self._begins_anew(job):
                continue  # somebody has taken it up meanwhile
            self._free(job)
            self._note(Event.FREED, job)
            freed += 1
        return freed

    def delete_received(self) -> int:
        """Remove from Orthanc what was kept for as long as the rules say; how many series."""
        deleted = 0
        for series_id, jobs in self._jobs_of_series(self._received.series_ids()):
            if all(self._outlived(job) for job in jobs):
                deleted += self._is_deleted(series_id, jobs[0].study_id)
        return deleted

    def _is_deleted(self, series_id: str, study_id: str) -> bool:
        """Delete the series, unless a person or its sender has taken it up since it was chosen.

        The study is locked meanwhile: nobody retries a job of it, and no job of it is made.
        """
        with self._database.transaction() as tx:
            chain = Chain(tx, study_id)
            query = sa.select(JOBS).where(JOBS.c.series_id == series_id)
            jobs = [job_of(row._mapping) for row in tx.execute(query)]
            newest = max(jobs, key=lambda job: job.created_at)
            quiet = sa.select(ARRIVALS.c.quiet).where(ARRIVALS.c.series_id == series_id)
            if not tx.scalar(quiet) or not all(self._outlived(job) for job in jobs):
                return False
            if self._received.instances_of(series_id) - set(newest.instance_ids):
                return False  # something came that no job has seen
            # The series last: as long as it is there, an interrupted run is begun again.
            for job in jobs:
                self._artifacts.delete(f"{job.id}/")
            self._received.delete_instances(newest.instance_ids)
            tx.execute(sa.delete(LOST).where(LOST.c.series_id == series_id))
            now = self._database.clock()
            chain.append(now, "retention", Event.DELETED, newest.state, newest)
        log.get().info(str(Event.DELETED), job_id=newest.id, state=str(newest.state))
        return True

    def _is_over(self, job: Job) -> bool:
        """Whether nobody goes on with the job's working data."""
        age_s = self._database.clock() - job.updated_at
        if age_s < _GRACE_S:
            return False
        if job.state in (State.CONFIRMED, State.SUPERSEDED):
            return True
        if job.state is State.REJECTED and _told(job):
            return True
        stopped = job.state in (State.CANCELED, State.REJECTED)
        return stopped and _is_past(age_s, self._keep.stopped_days)

    def _outlived(self, job: Job) -> bool:
        """Whether the received series has been kept long enough as far as this job goes."""
        age_s = self._database.clock() - job.updated_at
        if job.state is State.SUPERSEDED:
            return True
        if job.state is State.CONFIRMED or (job.state is State.REJECTED and _told(job)):
            return _is_past(age_s, self._keep.confirmed_days)
        if job.state is State.REJECTED and job.error == NoMatchingModel.__name__:
            return _is_past(age_s, self._keep.unwanted_days)
        return False

    def _leftovers(self, job: Job) -> set[str]:
        """Files and folders of the job that are not kept."""
        inside = set(self._artifacts.inside(job.id))
        return inside - set(_KEPT if job.state is State.CONFIRMED else ())

    def _free(self, job: Job) -> None:
        # The artifacts last: as long as there are some, an interrupted run is begun again.
        if job.facts.get("study"):
            unseal(job, self._vault)
        for name in self._leftovers(job):
            self._artifacts.delete(f"{job.id}/{name}")
        if not self._artifacts.inside(job.id):
            self._artifacts.delete(f"{job.id}/")

    def _begins_anew(self, job: Job) -> bool:
        """A retry begins where the series is de-identified; False if the job has moved on."""
        unchanged = sa.and_(
            JOBS.c.id == job.id, JOBS.c.state == job.state, JOBS.c.updated_at == job.updated_at
        )
        again = job.state in (State.CANCELED, State.REJECTED) and (
            job.step in _STEPS_AFTER_DEIDENTIFY
        )
        step = StepName.DEIDENTIFY if again else job.step
        with self._database.transaction() as tx:
            return tx.execute(sa.update(JOBS).where(unchanged).values(step=step)).rowcount == 1

    def _with_more_than_is_kept(self) -> Iterator[Job]:
        """Jobs that may have something to free. Thousands have but their picture: none is read."""
        kept, more = set[str](), list[str]()
        for job_id in self._artifacts.folders():
            if set(self._artifacts.inside(job_id)) <= set(_KEPT):
                kept.add(job_id)
            else:
                more.append(job_id)
        yield from self._jobs(more)
        yield from self._jobs(sorted(kept), JOBS.c.state != State.CONFIRMED)

    def _jobs(self, ids: Sequence[str], *conditions: sa.ColumnElement[bool]) -> Iterator[Job]:
        for some in in_parts(ids):
            with self._database.transaction() as tx:
                rows = tx.execute(sa.select(JOBS).where(JOBS.c.id.in_(some), *conditions)).all()
            yield from (job_of(row._mapping) for row in rows)

    def _jobs_of_series(self, series_ids: Sequence[str]) -> Iterator[tuple[str, list[Job]]]:
        """Series with their jobs, a few hundred in memory at once."""
        for some in in_parts(series_ids):
            found: dict[str, list[Job]] = defaultdict(list)
            with self._database.transaction() as tx:
                for row in tx.execute(sa.select(JOBS).where(JOBS.c.series_id.in_(some))):
                    found[row.series_id].append(job_of(row._mapping))
            for series_id, jobs in found.items():
                if any(job.state is not State.SUPERSEDED for job in jobs):
                    yield series_id, jobs

    def _note(self, event: Event, job: Job) -> None:
        journal.note(self._database, "retention", event, job)
        log.get().info(str(event), job_id=job.id, state=str(job.state))


def _told(job: Job) -> bool:
    """The destinations have proven that they keep the page that says why there is no result."""
    return bool(job.facts.get("explained"))


def _is_past(age_s: float, days: float | None) -> bool:
    return days is not None and age_s >= days * _DAY_S
