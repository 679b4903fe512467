"""The ledger: every job, lease and attempt, in one database. It decides; the broker only wakes.

SQLAlchemy over SQLite (one machine) or PostgreSQL (many). Every public method is one transaction,
and every change of state goes through ``node.jobs.TRANSITIONS``. Nothing here comes from a
patient: instances are known by Orthanc's hashes, causes by tags and keywords.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from node.edges.arrivals import mark_quiet
from node.edges.database import Database
from node.edges.ledger_lookups import Lookups
from node.edges.ledger_moves import (
    WAKE_GRACE_S,
    Moves,
    for_wish,
    held_by,
    plain_wish,
    set_of,
    taken,
)
from node.edges.ledger_tables import JOBS, job_of
from node.errors import NotPossible
from node.jobs import BY_HAND, Event, Explained, Job, State, StepName, Wish
from node.pipeline.delivery import hurried, resumed
from node.pipeline.replaced import OF_DELIVERY

#: A wake-up that brought nobody is sent again after this long: the broker may have lost it.
RESEND_S = 30.0
#: Facts of one delivery, which the next one does not share.
_OF_DELIVERY = ("unsuitable", "results", "plan", "delivery")


class Ledger(Lookups):
    """Jobs and everything that happens to them. Safe to share between threads and processes."""

    def __init__(self, url: str, *, clock: Callable[[], float] = time.time) -> None:
        self.database = Database(url, clock=clock)

    def open_jobs(
        self,
        series_id: str,
        study_id: str,
        instance_ids: Sequence[str],
        *,
        as_of: float | None = None,
    ) -> Job | None:
        """Make the job of a quiet series; None when the same instances have had theirs.

        The series stays to be looked at if something has arrived after ``as_of``.

        Jobs of the same series that have not delivered yet are superseded: they know too little.
        """
        job = Job(uuid.uuid4().hex, series_id, study_id, tuple(sorted(instance_ids)))
        with self._moves() as moves:
            mark_quiet(moves.tx, series_id, as_of)
            same = sa.select(JOBS.c.id).where(
                JOBS.c.series_id == series_id,
                JOBS.c.instance_set == set_of(job),
                JOBS.c.rule != BY_HAND,  # asking for a model by hand does not silence the rules
            )
            if not instance_ids or moves.tx.scalar(same):
                return None
            held = sa.select(JOBS).where(JOBS.c.series_id == series_id)
            for older in moves.tx.execute(held).all():
                moves.happen(job_of(older._mapping), Event.SUPERSEDE)
            moves.insert(job)
        return self.job(job.id)

    # -- a step's life ---------------------------------------------------------------------

    def claim(self, job_id: str, step: StepName, lease_s: float) -> Job | None:
        """Take the step: attempt + 1 and a lease. None when someone else has it or it is past."""
        now = self.database.clock()
        claimable = sa.and_(
            JOBS.c.id == job_id,
            JOBS.c.step == step,
            JOBS.c.state.in_([State.QUEUED, State.WAITING]),
            sa.or_(JOBS.c.next_try_at.is_(None), JOBS.c.next_try_at <= now),
        )
        with self._moves() as moves:
            claimed = moves.tx.execute(
                sa.update(JOBS)
                .where(claimable)
                .values(
                    state=State.RUNNING,
                    attempt=JOBS.c.attempt + 1,
                    lease_until=now + lease_s,
                    wake_at=None,
                    next_try_at=None,
                    progress=0.0,
                    updated_at=now,
                )
            )
            if claimed.rowcount != 1:
                return None
            job = moves.job(job_id)
            assert job is not None  # noqa: S101 - it was changed in this transaction
            moves.begin_attempt(job)
        return job

    def extend(self, job: Job, lease_s: float, progress: float | None = None) -> bool:
        """Keep the lease of a running step; False when it is no longer ours."""
        now = self.database.clock()
        values: dict[str, Any] = {"lease_until": now + lease_s, "updated_at": now}
        if progress is not None:
            values["progress"] = progress
        with self._moves() as moves:
            kept = moves.tx.execute(sa.update(JOBS).where(held_by(job)).values(**values))
            return bool(kept.rowcount == 1)

    def note(self, job: Job, facts: Mapping[str, Any]) -> bool:
        """Keep what a running step has reached: the next try begins there, even after a kill."""
        with self._moves() as moves:
            noted = moves.tx.execute(
                sa.update(JOBS).where(held_by(job)).values(facts={**job.facts, **facts})
            )
            return bool(noted.rowcount == 1)

    def finish(self, job: Job, facts: Mapping[str, Any]) -> Job | None:
        """The step is done: add its facts, make the next step due. None when not ours any more."""
        with self._moves() as moves:
            if not moves.holds(job):
                return None
            moves.end_attempt(job, "done")
            following = job.step.next
            event = Event.STEP_DONE if following else Event.LAST_STEP_DONE
            moves.happen(
                job, event, step=following or job.step, attempt=0,
                facts={**job.facts, **facts}, progress=0.0 if following else 1.0,
                wake_at=moves.now + WAKE_GRACE_S if following else None,
                cause="", remedy="", error="",
            )  # fmt: skip
        return self.job(job.id)

    def redirect(
        self, job: Job, step: StepName, facts: Mapping[str, Any], cause: str
    ) -> Job | None:
        """The job goes on at ``step`` with fresh attempts. None when not ours any more."""
        with self._moves() as moves:
            if not moves.holds(job):
                return None
            moves.end_attempt(job, f"on to {step}")
            moves.happen(
                job, Event.REDIRECT, step=step, attempt=0, progress=0.0, lease_until=None,
                facts={**job.facts, **facts}, wake_at=moves.now + WAKE_GRACE_S,
                cause=cause, remedy="", error="",
            )  # fmt: skip
        return self.job(job.id)

    def fork(self, job: Job, wishes: Sequence[Wish]) -> list[Job]:
        """Route is done: this job takes the first wish, one new job is made of each other."""
        made = [job.id]
        with self._moves() as moves:
            if not moves.holds(job):
                return []
            moves.end_attempt(job, "done")
            open_wishes = [wish for wish in wishes if not taken(moves.tx, job, wish)]
            if not open_wishes:
                moves.happen(
                    job, Event.SUPERSEDE, wake_at=None, lease_until=None,
                    cause="Another job has the same instances and model",
                    remedy="Nothing to do: see the other job of this series.",
                )  # fmt: skip
                return []
            first, *others = open_wishes
            moves.happen(
                for_wish(job, first), Event.STEP_DONE,
                step=StepName.DEIDENTIFY, attempt=0, wake_at=moves.now + WAKE_GRACE_S,
                facts=for_wish(job, first).facts,
            )  # fmt: skip
            for wish in others:
                twin = replace(
                    for_wish(job, wish), id=uuid.uuid4().hex, step=StepName.DEIDENTIFY,
                    state=State.QUEUED, attempt=0,
                )  # fmt: skip
                moves.insert(twin)
                made.append(twin.id)
        return [found for found in map(self.job, made) if found]

    def wait(
        self, job: Job, *, cause: str, remedy: str, error: str, delay_s: float,
        facts: Mapping[str, Any] | None = None, counts: bool = True,
    ) -> None:  # fmt: skip
        """Something outside did not answer: try the step again after ``delay_s``.

        Waiting for what may take days is no failed try: with ``counts`` false it uses up none.
        """
        at = self.database.clock() + delay_s
        reached = {"facts": {**job.facts, **facts}} if facts else {}  # or what was noted stays
        self._stop(
            job, Event.UNAVAILABLE, cause, remedy, error, next_try_at=at, wake_at=at,
            attempt=job.attempt if counts else job.attempt - 1, **reached,
        )  # fmt: skip

    def end(
        self, job: Job, event: Event, *, cause: str, remedy: str, error: str,
        facts: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """The job stops here, kept with its cause and remedy; ``facts`` are added to its own."""
        known = {**job.facts, **(facts or {})}
        self._stop(job, event, cause, remedy, error, wake_at=None, facts=known)

    def explained(self, job: Job, done: Explained) -> None:
        """Stop a job whose destinations keep the document that says why there is no result.

        Its working data is gone: a retry begins where the series is de-identified.
        """
        kept = {name: fact for name, fact in job.facts.items() if name not in _OF_DELIVERY}
        # A result may replace the page, when more instances come.
        told = {name: job.facts[name] for name in OF_DELIVERY if name in job.facts}
        self._stop(
            job, Event.EXPLAINED, **vars(done.reason), wake_at=None, step=StepName.DEIDENTIFY,
            facts={**kept, "explained": list(done.destinations), "told": told},
        )  # fmt: skip

    # -- the sweeper -----------------------------------------------------------------------

    def due(self) -> list[Job]:
        """Jobs whose step nobody has taken yet; each is due again after ``RESEND_S``."""
        now = self.database.clock()
        with self._moves() as moves:
            query = sa.select(JOBS).where(
                JOBS.c.state.in_([State.QUEUED, State.WAITING]), JOBS.c.wake_at <= now
            )
            found = [job_of(row._mapping) for row in moves.tx.execute(query)]
            self._sent(moves, found)
        return found

    def mark_sent(self, jobs: Sequence[Job]) -> None:
        """A wake-up was sent for these: none other is due before ``RESEND_S``."""
        with self._moves() as moves:
            self._sent(moves, jobs)

    def release_lost_leases(self, max_attempts: Mapping[StepName, int]) -> list[Job]:
        """Queue again what a dead worker held; fail what has used up its attempts."""
        now = self.database.clock()
        with self._moves() as moves:
            query = sa.select(JOBS).where(JOBS.c.state == State.RUNNING, JOBS.c.lease_until < now)
            lost = [job_of(row._mapping) for row in moves.tx.execute(query)]
            for job in lost:
                moves.end_attempt(job, "lease ran out")
                # A message that waited in the compute queue and was lost there is nobody's try.
                never_started = job.step is StepName.INFER and job.progress == 0
                attempt = job.attempt - 1 if never_started else job.attempt
                if attempt < max_attempts[job.step]:
                    moves.happen(
                        job, Event.LEASE_RAN_OUT,
                        attempt=attempt, wake_at=now, lease_until=None,
                    )  # fmt: skip
                    continue
                moves.happen(
                    job, Event.ATTEMPTS_USED_UP, wake_at=None, lease_until=None,
                    cause=f"The worker of step {job.step} died {job.attempt} times",
                    remedy="Look at the worker's log and memory, then retry the job.",
                    error="LeaseRanOut",
                )  # fmt: skip
        return lost

    # -- people ----------------------------------------------------------------------------

    def retry(self, job_id: str, facts: Mapping[str, Any] | None = None) -> Job:
        """Start the step at which a job stopped once more, with fresh attempts and more facts.

        After ``deliver`` only what is not confirmed is sent again (``node.pipeline.delivery``). A
        series that is held as incomplete is processed as it is.
        """
        job = self.find(job_id)
        if job.state is State.INCOMPLETE:
            facts = {**(facts or {}), "process_incomplete": True}
        waits = job.state is State.WAITING
        step, known = (job.step, hurried(job)) if waits else resumed(job)
        return self._by_person(
            job_id, Event.RETRY, step=step, attempt=0, cause="", remedy="", error="",
            next_try_at=None, wake_at=self.database.clock(), facts={**known, **(facts or {})},
        )  # fmt: skip

    def cancel(self, job_id: str) -> Job:
        """Stop a job; what was received stays in Orthanc."""
        return self._by_person(
            job_id, Event.CANCEL, cause="Canceled by a person",
            remedy="Retry the job to go on where it stopped.", error="",
            next_try_at=None, wake_at=None, lease_until=None,
        )  # fmt: skip

    def request(
        self, series_id: str, study_id: str, instance_ids: Sequence[str], wish: Wish
    ) -> Job:
        """The job of these instances and this model, made now if there is none: a person asked."""
        asked = Job(
            uuid.uuid4().hex, series_id, study_id, tuple(sorted(instance_ids)),
            facts={"wish": plain_wish(wish)},
        )  # fmt: skip
        same = sa.select(JOBS).where(
            JOBS.c.series_id == series_id,
            JOBS.c.instance_set == set_of(asked),
            JOBS.c.model_digest == wish.model_digest,
        )
        with self._moves() as moves:
            row = moves.tx.execute(same).first()
            if row:
                return job_of(row._mapping)
            moves.insert(for_wish(asked, wish))
        found = self.job(asked.id)
        assert found is not None  # noqa: S101 - it was inserted in the transaction above
        return found

    # -- inside ----------------------------------------------------------------------------

    @contextmanager
    def _moves(self) -> Iterator[Moves]:
        with self.database.transaction() as tx:
            yield Moves(tx, self.database.clock())

    def _sent(self, moves: Moves, jobs: Sequence[Job]) -> None:
        moves.tx.execute(
            sa.update(JOBS)
            .where(JOBS.c.id.in_([job.id for job in jobs]), JOBS.c.wake_at.is_not(None))
            .values(wake_at=moves.now + RESEND_S)
        )

    def _stop(
        self, job: Job, event: Event, cause: str, remedy: str, error: str, **values: Any
    ) -> None:
        with self._moves() as moves:
            if not moves.holds(job):
                return
            moves.end_attempt(job, error or event)
            moves.happen(
                job, event, cause=cause, remedy=remedy, error=error, lease_until=None, **values
            )

    def _by_person(self, job_id: str, event: Event, **values: Any) -> Job:
        with self._moves() as moves:
            job = moves.job(job_id)
            if job is None:
                raise NotPossible(f"There is no job {job_id}; `segnode jobs` lists them.")
            moves.end_attempt(job, event)
            if not moves.happen(job, event, **values):
                raise NotPossible(f"A job that is {job.state} cannot be changed by {event}.")
        found = self.job(job_id)
        assert found is not None  # noqa: S101 - jobs are never removed
        return found
