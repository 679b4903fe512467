"""What the sweeper does in the ledger: what is due, and what nobody holds any more."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from node.edges.ledger_lookups import Lookups
from node.edges.ledger_moves import held_by
from node.edges.ledger_tables import ARRIVALS, ATTEMPTS, JOBS, PAUSES, job_of
from node.jobs import Event, Job, State, Step, StepName, tried_since

#: How a try ended that was taken for hung.
_HUNG = "deadline passed"
QUEUE = "queue:"


class Sweeps(Lookups):
    """Nothing is lost with a broker or a worker: whatever it was, it is found here."""

    def due(self, steps: Collection[Step], at_most: int | None = None) -> int:
        """How many jobs could start one of these steps now, if ``at_most`` of them may run."""
        names = [step.name for step in steps]
        query = sa.select(sa.func.count()).select_from(JOBS).where(JOBS.c.step.in_(names))
        with self.database.transaction() as tx:
            if self._paused_queues(tx).intersection(step.queue for step in steps):
                return 0
            due = tx.scalar(query.where(claimable(self.database.clock()))) or 0
            if at_most is None:
                return due
            running = tx.scalar(query.where(JOBS.c.state == State.RUNNING)) or 0
            return max(0, min(due, at_most - running))

    def running(self, steps: Collection[Step]) -> int:
        """How many jobs are at one of these steps now."""
        return self._count(steps, [State.RUNNING])

    def waiting_for(self, steps: Collection[Step]) -> int:
        """How many jobs have one of these steps before them, due now or later."""
        return self._count(steps, [State.QUEUED, State.WAITING])

    def _count(self, steps: Collection[Step], states: Collection[State]) -> int:
        query = sa.select(sa.func.count()).where(
            JOBS.c.step.in_([step.name for step in steps]), JOBS.c.state.in_(states)
        )
        with self.database.transaction() as tx:
            return int(tx.scalar(query) or 0)

    def waiting_in_compute(self) -> list[Job]:
        """Jobs that were handed to the compute zone, where no worker has begun with them."""
        query = sa.select(JOBS).where(
            JOBS.c.state == State.RUNNING, JOBS.c.step == StepName.INFER, JOBS.c.progress == 0
        )
        with self.database.transaction() as tx:
            return [job_of(row._mapping) for row in tx.execute(query)]

    def handed_over(self, job: Job, patience_s: float) -> bool:
        """The compute zone has the message: what it waits for there is a worker, not a deadline."""
        waits = {
            "deadline_at": job.step_since + patience_s,
            "cause": "Waits for a compute worker",
            "remedy": "If it stays so: is one running (`segnode status`), has it its model?",
        }
        with self.database.transaction() as tx:
            changed = sa.update(JOBS).where(held_by(job), JOBS.c.progress == 0)
            return bool(tx.execute(changed.values(**waits)).rowcount == 1)

    def started(self, job: Job, deadline_s: float) -> bool:
        """A compute worker has begun: from now on the deadline counts."""
        begun = {
            "deadline_at": self.database.clock() + deadline_s,
            "progress": 0.001, "cause": "", "remedy": "",
        }  # fmt: skip
        with self.database.transaction() as tx:
            changed = sa.update(JOBS).where(held_by(job), JOBS.c.progress == 0)
            return bool(tx.execute(changed.values(**begun)).rowcount == 1)

    def follow_clock(self, jump_s: float, lease_s: float, since_s: float) -> None:
        """The clock was set within the last ``since_s``: whatever has a time keeps its distance.

        What was written after that has its times by the new clock already. Every step that runs
        gets a whole lease; whose worker is dead will not extend it.
        """
        now = self.database.clock()

        def by_the_old_clock(written_at: sa.Column[float]) -> sa.ColumnElement[bool]:
            return sa.or_(written_at < now - since_s, written_at > now + 1)

        moved = {
            name: JOBS.c[name] + jump_s for name in ("next_try_at", "deadline_at", "step_since")
        }
        with self.database.transaction() as tx:
            tx.execute(sa.update(JOBS).where(by_the_old_clock(JOBS.c.updated_at)).values(**moved))
            running = sa.update(JOBS).where(JOBS.c.state == State.RUNNING)
            tx.execute(running.values(lease_until=now + lease_s))
            arriving = sa.update(ARRIVALS).where(
                ARRIVALS.c.quiet.is_(False), by_the_old_clock(ARRIVALS.c.last_change_at)
            )
            tx.execute(arriving.values(last_change_at=ARRIVALS.c.last_change_at + jump_s))

    def release_lost_leases(self, steps: Mapping[StepName, Step]) -> list[Job]:
        """Queue again what a dead or hung worker held; fail what has crashed too often."""
        lost = sa.select(JOBS).where(
            JOBS.c.state == State.RUNNING, JOBS.c.lease_until <= self.database.clock(),
            JOBS.c.step.in_(steps),  # another version's job must not keep the others from theirs
        )  # fmt: skip
        with self.database.transaction() as tx:
            found = [job_of(row._mapping) for row in tx.execute(lost)]
        released = (self._release(job, steps[job.step]) for job in found)
        return [job for job in released if job]

    def _release(self, lost: Job, step: Step) -> Job | None:
        with self.moves(lost.study_id) as moves:
            job = moves.found(sa.and_(held_by(lost), JOBS.c.lease_until <= moves.now))
            if job is None:
                return None
            times = sa.select(JOBS.c.lease_until, JOBS.c.deadline_at).where(JOBS.c.id == job.id)
            lease_until, deadline_at = moves.tx.execute(times).one()
            # A lease that ended before the deadline has not ended for it, however late it is found.
            overran = deadline_at is not None and deadline_at <= lease_until
            since = tried_since(job.step_since, lease_until, moves.now)
            if job.step is StepName.INFER and job.progress == 0:
                paused = step.queue in self._paused_queues(moves.tx)
                if overran and not paused:
                    return moves.happen(
                        job, Event.PATIENCE_ENDED, outcome="no compute worker",
                        cause="No compute worker took it", error="NoComputeWorker",
                        remedy="Start a compute worker (`segnode status`), then retry the job.",
                    )  # fmt: skip
                # A message that was lost in the compute queue is nobody's crash.
                return moves.happen(
                    job, Event.LEASE_RAN_OUT, outcome="message lost",
                    step_since=moves.now if overran else since,
                )  # fmt: skip
            crashes, hangs = job.crashes + 1, _hangs(moves.tx, job) + overran
            what = f"took longer than {step.deadline_s:.0f} s" if overran else "died"
            count = hangs if overran else crashes - hangs
            told: dict[str, Any] = {
                "crashes": crashes,
                "step_since": since,
                "cause": f"The worker of step {step.name} {what} ({count} times)",
                "remedy": "Look at the worker's log and memory, then retry the job.",
                "error": "DeadlinePassed" if overran else "LeaseRanOut",
            }
            used_up = crashes >= step.max_crashes or hangs >= step.max_hangs
            event = Event.ATTEMPTS_USED_UP if used_up else Event.LEASE_RAN_OUT
            outcome = _HUNG if overran else "lease ran out"
            return moves.happen(job, event, outcome=outcome, **told)

    def _paused_queues(self, tx: Connection) -> frozenset[str]:
        names = tx.scalars(sa.select(PAUSES.c.name).where(PAUSES.c.name.startswith(QUEUE)))
        return frozenset(name.removeprefix(QUEUE) for name in names)


def _hangs(tx: Connection, job: Job) -> int:
    """How many of the tries that ``crashes`` counts were taken for hung."""
    tries = sa.select(ATTEMPTS.c.outcome).where(ATTEMPTS.c.job_id == job.id)
    of_this_step = tx.scalars(tries.order_by(ATTEMPTS.c.id.desc()).limit(job.attempt))
    return list(of_this_step).count(_HUNG)


def claimable(now: float) -> sa.ColumnElement[bool]:
    """Rows whose step may start now."""
    return sa.and_(
        JOBS.c.state.in_([State.QUEUED, State.WAITING]),
        sa.or_(JOBS.c.next_try_at.is_(None), JOBS.c.next_try_at <= now),
    )
