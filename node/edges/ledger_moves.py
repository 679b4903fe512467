"""How the row of a job changes: under its study's lock, along the transition table, journaled."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from node.edges.journal import Chain
from node.edges.ledger_tables import ATTEMPTS, JOB_FIELDS, JOBS, job_of
from node.jobs import Event, Job, Priority, State, Wish, after, job_key

#: The step begins anew, even where it is the same.
_AFRESH = (Event.REDIRECT, Event.RETRY, Event.ARRIVED_AGAIN)
#: Fields of a job that its row keeps as lists.
_LISTS = ("instance_ids", "destinations")


@dataclass(frozen=True)
class Moves:
    """What happens to jobs of one study in one transaction, at one time, in somebody's name.

    The only writer of states. A change writes the job's whole row: what it starts from is read
    here, in the same transaction, and locked. It is conditional on the state and the lease that the
    job was read with, so whoever comes second changes nothing.
    """

    tx: Connection
    now: float
    who: str
    journal: Chain

    def job(self, job_id: str) -> Job | None:
        """The job as it stands, or None."""
        return self.found(JOBS.c.id == job_id)

    def found(self, which: sa.ColumnElement[bool]) -> Job | None:
        """The one job of which this is true, as it stands, or None."""
        row = self.tx.execute(sa.select(JOBS).where(which).with_for_update()).one_or_none()
        return job_of(row._mapping) if row else None

    def insert(self, job: Job) -> Job:
        """A new job; its first step is due."""
        state = after(None, Event.OPEN)
        assert state is not None  # noqa: S101 - it stands in the table
        job = replace(
            job, state=state, created_at=self.now, updated_at=self.now, step_since=self.now
        )
        row = {name: getattr(job, name) for name in JOB_FIELDS}
        row |= {name: list(row[name]) for name in _LISTS}
        row |= {
            "facts": dict(job.facts), "key": job.key, "instance_set": set_of(job),
            "rank": rank_of(job),
        }  # fmt: skip
        self.tx.execute(sa.insert(JOBS).values(**row))
        self.journal.append(self.now, self.who, Event.OPEN, state, job)
        return job

    def happen(
        self, job: Job, event: Event, *, outcome: str = "", lease_until: float | None = None,
        deadline_at: float | None = None, **changes: Any,
    ) -> Job | None:  # fmt: skip
        """Move a job along the transition table; None if that cannot happen to it (any more).

        ``job`` is as it was read; ``changes`` are other fields of it. A try that runs ends with
        ``outcome`` (by default the event), and its lease with it.
        """
        state = after(job.state, event)
        if state is None:
            return None
        moved = replace(job, state=state, updated_at=self.now, **changes)
        if moved.step is not job.step or event in _AFRESH:
            moved = replace(moved, step_since=self.now, attempt=0, crashes=0, progress=0.0)
        row = {name: getattr(moved, name) for name in JOB_FIELDS if name != "id"}
        row |= {name: list(row[name]) for name in _LISTS}
        row |= {
            "facts": dict(moved.facts), "key": moved.key, "rank": rank_of(moved),
            "lease_until": lease_until, "deadline_at": deadline_at,
        }  # fmt: skip
        as_read = (JOBS.c.id == job.id, JOBS.c.state == job.state, JOBS.c.lease == job.lease)
        if self.tx.execute(sa.update(JOBS).where(*as_read).values(**row)).rowcount != 1:
            return None
        if job.state is State.RUNNING:
            self._end_attempt(job, outcome or event)
        if state is State.RUNNING:
            self._begin_attempt(moved)
        self.journal.append(self.now, self.who, event, state, moved)
        return moved

    def holds(self, job: Job) -> Job | None:
        """The job as it stands, if the lease under which ``job`` was read is still its holder's."""
        return self.found(held_by(job))

    def _begin_attempt(self, job: Job) -> None:
        self.tx.execute(
            sa.insert(ATTEMPTS).values(
                job_id=job.id, step=job.step, attempt=job.attempt,
                started_at=self.now, ended_at=None, outcome="",
            )
        )  # fmt: skip

    def _end_attempt(self, job: Job, outcome: str) -> None:
        running = (ATTEMPTS.c.job_id == job.id, ATTEMPTS.c.ended_at.is_(None))
        ended = sa.update(ATTEMPTS).where(*running)
        self.tx.execute(ended.values(ended_at=self.now, outcome=outcome))


def read_job(tx: Connection, job_id: str) -> Job | None:
    """The job as it stands, or None."""
    row = tx.execute(sa.select(JOBS).where(JOBS.c.id == job_id)).one_or_none()
    return job_of(row._mapping) if row else None


def held_by(job: Job) -> sa.ColumnElement[bool]:
    """The row of a step that runs, as long as it is still this lease of it."""
    return sa.and_(
        JOBS.c.id == job.id, JOBS.c.lease == job.lease, JOBS.c.state == State.RUNNING
    )  # fmt: skip


def rank_of(job: Job) -> float:
    """The lowest goes first: when it came, and a head start for what is urgent.

    What nobody has looked at yet may be urgent.
    """
    priority = job.priority if job.model or job.rule else Priority.URGENT
    return job.created_at - priority.head_start_s


def taken(tx: Connection, job: Job, wish: Wish) -> bool:
    """Whether another job has the same instances, model and rule."""
    other = sa.select(JOBS.c.id).where(JOBS.c.key == for_wish(job, wish).key, JOBS.c.id != job.id)
    return tx.scalar(other) is not None


def for_wish(job: Job, wish: Wish) -> Job:
    """The job as the wish makes it."""
    wanted = {name: value for name, value in plain_wish(wish).items() if name != "explain"}
    facts = {**job.facts, "explain": True} if wish.explain else job.facts
    return replace(job, facts=facts, **wanted)


def plain_wish(wish: Wish) -> dict[str, Any]:
    """As JSON keeps it."""
    return {f.name: getattr(wish, f.name) for f in fields(Wish)}


def set_of(job: Job) -> str:
    """The hash of the instances alone, whatever is made of them."""
    return job_key(job.series_id, job.instance_ids, "", "")
