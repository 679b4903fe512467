"""How the row of a job changes: inside a transaction, and along the transition table only."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from node.edges.ledger_tables import ATTEMPTS, JOB_FIELDS, JOBS, job_of
from node.jobs import Event, Job, State, Wish, after, job_key

#: Who ends a step wakes the next one itself; the sweeper does it if that has not happened by then.
WAKE_GRACE_S = 2.0


@dataclass(frozen=True)
class Moves:
    """What happens to jobs in one transaction, at one time."""

    tx: Connection
    now: float

    def job(self, job_id: str) -> Job | None:
        """The job as it stands, or None."""
        return read_job(self.tx, job_id)

    def insert(self, job: Job) -> None:
        """A new job; its first step is due."""
        row = {name: getattr(job, name) for name in JOB_FIELDS}
        row |= {
            "instance_ids": list(job.instance_ids), "destinations": list(job.destinations),
            "facts": dict(job.facts), "key": job.key, "instance_set": set_of(job),
            "created_at": self.now, "updated_at": self.now, "wake_at": self.now + WAKE_GRACE_S,
        }  # fmt: skip
        self.tx.execute(sa.insert(JOBS).values(**row))

    def happen(self, job: Job, event: Event, **values: Any) -> bool:
        """Move a job along the transition table; False if ``event`` cannot happen to it."""
        state = after(job.state, event)
        if state is None:
            return False
        for name in ("model", "model_digest", "rule", "rule_version"):
            values.setdefault(name, getattr(job, name))
        values.setdefault("destinations", list(job.destinations))
        self.tx.execute(
            sa.update(JOBS)
            .where(JOBS.c.id == job.id)
            .values(state=state, key=job.key, updated_at=self.now, **values)
        )
        return True

    def holds(self, job: Job) -> bool:
        """Whether the lease under which ``job`` was read is still its holder's."""
        return self.tx.scalar(sa.select(JOBS.c.id).where(held_by(job))) is not None

    def begin_attempt(self, job: Job) -> None:
        """Note that this try of the step began."""
        self.tx.execute(
            sa.insert(ATTEMPTS).values(
                job_id=job.id, step=job.step, attempt=job.attempt,
                started_at=self.now, ended_at=None, outcome="",
            )
        )  # fmt: skip

    def end_attempt(self, job: Job, outcome: str) -> None:
        """Note how this try of the step ended."""
        self.tx.execute(
            sa.update(ATTEMPTS)
            .where(
                ATTEMPTS.c.job_id == job.id,
                ATTEMPTS.c.step == job.step,
                ATTEMPTS.c.attempt == job.attempt,
                ATTEMPTS.c.ended_at.is_(None),
            )
            .values(ended_at=self.now, outcome=outcome)
        )


def read_job(tx: Connection, job_id: str) -> Job | None:
    """The job as it stands, or None."""
    row = tx.execute(sa.select(JOBS).where(JOBS.c.id == job_id)).one_or_none()
    return job_of(row._mapping) if row else None


def held_by(job: Job) -> sa.ColumnElement[bool]:
    """The row of a step that runs, as long as it is still this try of it."""
    return sa.and_(
        JOBS.c.id == job.id,
        JOBS.c.step == job.step,
        JOBS.c.attempt == job.attempt,
        JOBS.c.state == State.RUNNING,
    )


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
