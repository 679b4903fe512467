"""Instances whose file is gone: they leave Orthanc's index, and are named until they come again.

As long as the index has one, Orthanc answers success to whoever sends it again, and keeps nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import sqlalchemy as sa

from node import log
from node.edges.database import Database, upsert
from node.edges.journal import Chain
from node.edges.ledger_tables import JOBS, LOST, job_of
from node.edges.orthanc_storage import OrthancStorage
from node.errors import Gone
from node.jobs import Event, Job, State

#: A loss is told for so long; after that the journal alone knows of it.
_TOLD_S = 30 * 86400.0


@dataclass(frozen=True)
class Loss:
    """Instances of a series that were received, lost their file and have not come again.

    ``proven``: every job of the series has its result where it belongs, or was superseded.
    """

    study_id: str
    series_id: str
    instance_ids: frozenset[str]
    proven: bool


class LostInstances:
    """Takes instances without a file out of Orthanc; ledger and journal remember them."""

    def __init__(self, database: Database, storage: OrthancStorage) -> None:
        self._database, self._storage = database, storage

    def take_out(self, instance_ids: Iterable[str]) -> None:
        """Remove them from the index, so that they can be sent again; journaled before that."""
        found: dict[tuple[str, str], list[str]] = defaultdict(list)
        for one in instance_ids:
            try:
                if self._storage.is_fileless(one):
                    found[self._storage.parents_of(one)].append(one)
            except Gone:
                continue
        for (study_id, series_id), lost in found.items():
            self._note(study_id, series_id, lost)
            for one in lost:
                if self._storage.is_fileless(one):  # still: it may have been sent again by now
                    self._storage.delete_instance(one)

    def missing(self) -> list[Loss]:
        """What was taken out in the last month and has not come again, series by series."""
        query = sa.select(LOST).where(LOST.c.since > self._database.clock() - _TOLD_S)
        lost: dict[tuple[str, str], set[str]] = defaultdict(set)
        with self._database.transaction() as tx:
            for row in tx.execute(query):
                lost[row.study_id, row.series_id].add(row.instance_id)
        found = []
        for (study_id, series_id), instances in lost.items():
            if gone := instances - self._storage.instances_of(series_id):
                jobs = self._jobs(series_id)
                over = all(job.state in (State.CONFIRMED, State.SUPERSEDED) for job in jobs)
                found.append(Loss(study_id, series_id, frozenset(gone), bool(jobs) and over))
        return found

    def _note(self, study_id: str, series_id: str, lost: Sequence[str]) -> None:
        # Of a series that was still arriving there is no job yet.
        none = Job("", series_id, study_id, ())
        job = max(self._jobs(series_id), key=lambda job: job.created_at, default=none)
        cause = f"{len(lost)} received instances have lost their files: send the series again"
        told = replace(job, cause=cause, error="")
        now = self._database.clock()
        values = {"series_id": series_id, "study_id": study_id, "since": now}
        with self._database.transaction() as tx:
            Chain(tx, study_id).append(now, "reconcile", Event.LOST, job.state, told)
            for one in lost:
                upsert(tx, LOST, {"instance_id": one}, values)
        log.get().warning(str(Event.LOST), job_id=job.id, instances=len(lost))

    def _jobs(self, series_id: str) -> list[Job]:
        with self._database.transaction() as tx:
            rows = tx.execute(sa.select(JOBS).where(JOBS.c.series_id == series_id))
            return [job_of(row._mapping) for row in rows]
