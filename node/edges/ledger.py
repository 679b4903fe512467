"""The ledger: every job, lease and attempt, in one database. It decides; the broker only wakes.

SQLAlchemy over SQLite (one machine) or PostgreSQL (many). Every public method is one transaction,
and every change of state goes through ``node.jobs.TRANSITIONS``. Nothing here comes from a
patient: instances are known by Orthanc's hashes, causes by tags and keywords.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from node.edges.ledger_tables import (
    ARRIVALS,
    ATTEMPTS,
    CURSORS,
    JOB_FIELDS,
    JOBS,
    job_of,
    open_database,
    upsert,
)
from node.errors import NotPossible
from node.jobs import (
    BY_HAND,
    Attempt,
    Event,
    Explained,
    Job,
    State,
    StepName,
    Wish,
    after,
    job_key,
)

#: A wake-up that brought nobody is sent again after this long: the broker may have lost it.
RESEND_S = 30.0
#: Who ends a step wakes the next one itself; the sweeper does it if that has not happened by then.
_WAKE_GRACE_S = 2.0


#: Facts of one delivery, which the next one does not share.
_OF_DELIVERY = (
    "unsuitable", "results", "deliveries", "accepted", "fallback", "transactions", "proofs",
)  # fmt: skip


class Ledger:
    """Jobs and everything that happens to them. Safe to share between threads and processes."""

    def __init__(self, url: str, *, clock: Callable[[], float] = time.time) -> None:
        self._engine = open_database(url)
        self._clock = clock

    def forget_connections(self) -> None:
        """Open new connections from here on: a forked process must not use its parent's."""
        self._engine.dispose(close=False)

    # -- the changes feed ------------------------------------------------------------------

    def cursor(self, name: str) -> int:
        """The last sequence number read of a feed; 0 when it was never read."""
        with self._transaction() as tx:
            value = tx.scalar(sa.select(CURSORS.c.value).where(CURSORS.c.name == name))
        return int(value or 0)

    def record_arrivals(self, name: str, value: int, series_ids: Iterable[str]) -> None:
        """Note which series received something and move the feed's cursor, both or neither."""
        now = self._clock()
        with self._transaction() as tx:
            for series_id in set(series_ids):
                upsert(
                    tx,
                    ARRIVALS,
                    {"series_id": series_id},
                    {"last_change_at": now, "quiet": False},
                )
            upsert(tx, CURSORS, {"name": name}, {"value": value})

    def quiet_series(self, quiet_s: float) -> list[str]:
        """Series that have received nothing for ``quiet_s`` seconds, and no job made of it yet."""
        query = sa.select(ARRIVALS.c.series_id).where(
            ARRIVALS.c.quiet.is_(False),
            ARRIVALS.c.last_change_at <= self._clock() - quiet_s,
        )
        with self._transaction() as tx:
            return list(tx.scalars(query))

    def open_jobs(self, series_id: str, study_id: str, instance_ids: Sequence[str]) -> Job | None:
        """Make the job of a quiet series; None when the same instances have had theirs.

        Jobs of the same series that have not delivered yet are superseded: they know too little.
        """
        job = Job(uuid.uuid4().hex, series_id, study_id, tuple(sorted(instance_ids)))
        with self._transaction() as tx:
            upsert(tx, ARRIVALS, {"series_id": series_id}, {"quiet": True}, insert=False)
            same = sa.select(JOBS.c.id).where(
                JOBS.c.series_id == series_id,
                JOBS.c.instance_set == _set_of(job),
                JOBS.c.rule != BY_HAND,  # asking for a model by hand does not silence the rules
            )
            if not instance_ids or tx.scalar(same):
                return None
            held = sa.select(JOBS).where(JOBS.c.series_id == series_id)
            for older in tx.execute(held).all():
                self._happen(tx, job_of(older._mapping), Event.SUPERSEDE)
            self._insert(tx, job)
        return self.job(job.id)

    # -- a step's life ---------------------------------------------------------------------

    def claim(self, job_id: str, step: StepName, lease_s: float) -> Job | None:
        """Take the step: attempt + 1 and a lease. None when someone else has it or it is past."""
        now = self._clock()
        claimable = sa.and_(
            JOBS.c.id == job_id,
            JOBS.c.step == step,
            JOBS.c.state.in_([State.QUEUED, State.WAITING]),
            sa.or_(JOBS.c.next_try_at.is_(None), JOBS.c.next_try_at <= now),
        )
        with self._transaction() as tx:
            claimed = tx.execute(
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
            job = self._read(tx, job_id)
            tx.execute(
                sa.insert(ATTEMPTS).values(
                    job_id=job_id,
                    step=step,
                    attempt=job.attempt,
                    started_at=now,
                    ended_at=None,
                    outcome="",
                )
            )
        return job

    def extend(self, job: Job, lease_s: float, progress: float | None = None) -> bool:
        """Keep the lease of a running step; False when it is no longer ours."""
        now = self._clock()
        values: dict[str, Any] = {"lease_until": now + lease_s, "updated_at": now}
        if progress is not None:
            values["progress"] = progress
        with self._transaction() as tx:
            kept = tx.execute(sa.update(JOBS).where(_held_by(job)).values(**values))
            return bool(kept.rowcount == 1)

    def finish(self, job: Job, facts: Mapping[str, Any]) -> Job | None:
        """The step is done: add its facts, make the next step due. None when not ours any more."""
        with self._transaction() as tx:
            if not self._still_held(tx, job):
                return None
            self._end_attempt(tx, job, "done")
            following = job.step.next
            event = Event.STEP_DONE if following else Event.LAST_STEP_DONE
            self._happen(
                tx, job, event, step=following or job.step, attempt=0,
                facts={**job.facts, **facts}, progress=0.0 if following else 1.0,
                wake_at=self._clock() + _WAKE_GRACE_S if following else None,
                cause="", remedy="", error="",
            )  # fmt: skip
        return self.job(job.id)

    def redirect(
        self, job: Job, step: StepName, facts: Mapping[str, Any], cause: str
    ) -> Job | None:
        """The job goes on at ``step`` with fresh attempts. None when not ours any more."""
        with self._transaction() as tx:
            if not self._still_held(tx, job):
                return None
            self._end_attempt(tx, job, f"on to {step}")
            self._happen(
                tx, job, Event.REDIRECT, step=step, attempt=0, progress=0.0, lease_until=None,
                facts={**job.facts, **facts}, wake_at=self._clock() + _WAKE_GRACE_S,
                cause=cause, remedy="", error="",
            )  # fmt: skip
        return self.job(job.id)

    def fork(self, job: Job, wishes: Sequence[Wish]) -> list[Job]:
        """Route is done: this job takes the first wish, one new job is made of each other."""
        made = [job.id]
        with self._transaction() as tx:
            if not self._still_held(tx, job):
                return []
            self._end_attempt(tx, job, "done")
            open_wishes = [wish for wish in wishes if not _taken(tx, job, wish)]
            if not open_wishes:
                self._happen(
                    tx, job, Event.SUPERSEDE, wake_at=None, lease_until=None,
                    cause="Another job has the same instances and model",
                    remedy="Nothing to do: see the other job of this series.",
                )  # fmt: skip
                return []
            first, *others = open_wishes
            self._happen(
                tx, _for_wish(job, first), Event.STEP_DONE,
                step=StepName.DEIDENTIFY, attempt=0, wake_at=self._clock() + _WAKE_GRACE_S,
                facts=_for_wish(job, first).facts,
            )  # fmt: skip
            for wish in others:
                twin = replace(
                    _for_wish(job, wish), id=uuid.uuid4().hex, step=StepName.DEIDENTIFY,
                    state=State.QUEUED, attempt=0,
                )  # fmt: skip
                self._insert(tx, twin)
                made.append(twin.id)
        return [found for found in map(self.job, made) if found]

    def wait(
        self, job: Job, *, cause: str, remedy: str, error: str, delay_s: float,
        facts: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Something outside did not answer: try the step again after ``delay_s``."""
        at = self._clock() + delay_s
        self._stop(
            job, Event.UNAVAILABLE, cause, remedy, error, next_try_at=at, wake_at=at,
            facts={**job.facts, **(facts or {})},
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
        self._stop(
            job, Event.EXPLAINED, **vars(done.reason), wake_at=None, step=StepName.DEIDENTIFY,
            facts={**kept, "explained": list(done.destinations)},
        )  # fmt: skip

    # -- the sweeper -----------------------------------------------------------------------

    def due(self) -> list[Job]:
        """Jobs whose step nobody has taken yet; each is due again after ``RESEND_S``."""
        now = self._clock()
        with self._transaction() as tx:
            query = sa.select(JOBS).where(
                JOBS.c.state.in_([State.QUEUED, State.WAITING]), JOBS.c.wake_at <= now
            )
            found = [job_of(row._mapping) for row in tx.execute(query)]
            self.mark_sent(found, tx)
        return found

    def mark_sent(self, jobs: Sequence[Job], tx: Connection | None = None) -> None:
        """A wake-up was sent for these: none other is due before ``RESEND_S``."""
        if not jobs:
            return
        statement = (
            sa.update(JOBS)
            .where(JOBS.c.id.in_([job.id for job in jobs]), JOBS.c.wake_at.is_not(None))
            .values(wake_at=self._clock() + RESEND_S)
        )
        if tx is not None:
            tx.execute(statement)
            return
        with self._transaction() as own:
            own.execute(statement)

    def release_lost_leases(self, max_attempts: Mapping[StepName, int]) -> list[Job]:
        """Queue again what a dead worker held; fail what has used up its attempts."""
        now = self._clock()
        with self._transaction() as tx:
            query = sa.select(JOBS).where(JOBS.c.state == State.RUNNING, JOBS.c.lease_until < now)
            lost = [job_of(row._mapping) for row in tx.execute(query)]
            for job in lost:
                self._end_attempt(tx, job, "lease ran out")
                # A message that waited in the compute queue and was lost there is nobody's try.
                never_started = job.step is StepName.INFER and job.progress == 0
                attempt = job.attempt - 1 if never_started else job.attempt
                if attempt < max_attempts[job.step]:
                    self._happen(
                        tx, job, Event.LEASE_RAN_OUT,
                        attempt=attempt, wake_at=now, lease_until=None,
                    )  # fmt: skip
                    continue
                self._happen(
                    tx, job, Event.ATTEMPTS_USED_UP, wake_at=None, lease_until=None,
                    cause=f"The worker of step {job.step} died {job.attempt} times",
                    remedy="Look at the worker's log and memory, then retry the job.",
                    error="LeaseRanOut",
                )  # fmt: skip
        return lost

    # -- people ----------------------------------------------------------------------------

    def job(self, job_id: str) -> Job | None:
        """One job, or None."""
        with self._transaction() as tx:
            row = tx.execute(sa.select(JOBS).where(JOBS.c.id == job_id)).one_or_none()
        return job_of(row._mapping) if row else None

    def find(self, beginning: str) -> Job:
        """The one job whose id begins like this.

        Raises
        ------
        NotPossible
            No job does, or several do.
        """
        query = sa.select(JOBS).where(JOBS.c.id.startswith(beginning, autoescape=True)).limit(2)
        with self._transaction() as tx:
            found = [job_of(row._mapping) for row in tx.execute(query)]
        if len(found) != 1:
            how_many = "more than one job" if found else "no job"
            raise NotPossible(f"There is {how_many} whose id begins with {beginning}.")
        return found[0]

    def jobs(self, limit: int = 200, study_id: str | None = None) -> list[Job]:
        """The newest jobs first, of one study if asked."""
        query = sa.select(JOBS).order_by(JOBS.c.created_at.desc(), JOBS.c.id).limit(limit)
        if study_id is not None:
            query = query.where(JOBS.c.study_id == study_id)
        with self._transaction() as tx:
            return [job_of(row._mapping) for row in tx.execute(query)]

    def counts(self) -> Mapping[State, int]:
        """How many jobs are in each state."""
        query = sa.select(JOBS.c.state, sa.func.count()).group_by(JOBS.c.state)
        with self._transaction() as tx:
            return {State(state): count for state, count in tx.execute(query)}

    def attempts(self, job_id: str) -> list[Attempt]:
        """Every try of every step of a job, oldest first."""
        query = sa.select(ATTEMPTS).where(ATTEMPTS.c.job_id == job_id).order_by(ATTEMPTS.c.id)
        with self._transaction() as tx:
            return [
                Attempt(StepName(r.step), r.attempt, r.started_at, r.ended_at, r.outcome)
                for r in tx.execute(query)
            ]

    def retry(self, job_id: str, facts: Mapping[str, Any] | None = None) -> Job:
        """Start the step at which a job stopped once more, with fresh attempts and more facts.

        What a destination accepted and then did not prove is sent again: a job that stopped in
        ``confirm`` starts at ``deliver``. The objects keep their UIDs, so none is doubled.
        """
        job = self.find(job_id)
        unproven = job.step is StepName.CONFIRM and job.state is not State.WAITING
        again: dict[str, Any] = {"step": StepName.DELIVER} if unproven else {}
        sent = ("accepted", "transactions") if unproven else ()
        kept = {name: fact for name, fact in job.facts.items() if name not in sent}
        return self._by_person(
            job_id, Event.RETRY, attempt=0, cause="", remedy="", error="",
            next_try_at=None, wake_at=self._clock(), facts={**kept, **(facts or {})}, **again,
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
            facts={"wish": _plain(wish)},
        )  # fmt: skip
        same = sa.select(JOBS).where(
            JOBS.c.series_id == series_id,
            JOBS.c.instance_set == _set_of(asked),
            JOBS.c.model_digest == wish.model_digest,
        )
        with self._transaction() as tx:
            row = tx.execute(same).first()
            if row:
                return job_of(row._mapping)
            self._insert(tx, _for_wish(asked, wish))
        found = self.job(asked.id)
        assert found is not None  # noqa: S101 - it was inserted in the transaction above
        return found

    # -- inside ----------------------------------------------------------------------------

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with self._engine.begin() as tx:
            yield tx

    def _read(self, tx: Connection, job_id: str) -> Job:
        return job_of(tx.execute(sa.select(JOBS).where(JOBS.c.id == job_id)).one()._mapping)

    def _insert(self, tx: Connection, job: Job) -> None:
        now = self._clock()
        row = {name: getattr(job, name) for name in JOB_FIELDS}
        row |= {
            "instance_ids": list(job.instance_ids), "destinations": list(job.destinations),
            "facts": dict(job.facts), "key": job.key, "instance_set": _set_of(job),
            "created_at": now, "updated_at": now, "wake_at": now + _WAKE_GRACE_S,
        }  # fmt: skip
        tx.execute(sa.insert(JOBS).values(**row))

    def _happen(self, tx: Connection, job: Job, event: Event, **values: Any) -> bool:
        """Move a job along the transition table, if ``event`` can happen to it."""
        state = after(job.state, event)
        if state is None:
            return False
        for name in ("model", "model_digest", "rule", "rule_version"):
            values.setdefault(name, getattr(job, name))
        values.setdefault("destinations", list(job.destinations))
        tx.execute(
            sa.update(JOBS)
            .where(JOBS.c.id == job.id)
            .values(state=state, key=job.key, updated_at=self._clock(), **values)
        )
        return True

    def _still_held(self, tx: Connection, job: Job) -> bool:
        return tx.scalar(sa.select(JOBS.c.id).where(_held_by(job))) is not None

    def _end_attempt(self, tx: Connection, job: Job, outcome: str) -> None:
        tx.execute(
            sa.update(ATTEMPTS)
            .where(
                ATTEMPTS.c.job_id == job.id,
                ATTEMPTS.c.step == job.step,
                ATTEMPTS.c.attempt == job.attempt,
                ATTEMPTS.c.ended_at.is_(None),
            )
            .values(ended_at=self._clock(), outcome=outcome)
        )

    def _stop(
        self, job: Job, event: Event, cause: str, remedy: str, error: str, **values: Any
    ) -> None:
        with self._transaction() as tx:
            if not self._still_held(tx, job):
                return
            self._end_attempt(tx, job, error or event)
            self._happen(
                tx, job, event, cause=cause, remedy=remedy, error=error, lease_until=None, **values
            )

    def _by_person(self, job_id: str, event: Event, **values: Any) -> Job:
        with self._transaction() as tx:
            row = tx.execute(sa.select(JOBS).where(JOBS.c.id == job_id)).one_or_none()
            if row is None:
                raise NotPossible(f"There is no job {job_id}; `segnode jobs` lists them.")
            job = job_of(row._mapping)
            self._end_attempt(tx, job, event)
            if not self._happen(tx, job, event, **values):
                raise NotPossible(f"A job that is {job.state} cannot be changed by {event}.")
            return self._read(tx, job_id)


def _held_by(job: Job) -> sa.ColumnElement[bool]:
    return sa.and_(
        JOBS.c.id == job.id,
        JOBS.c.step == job.step,
        JOBS.c.attempt == job.attempt,
        JOBS.c.state == State.RUNNING,
    )


def _taken(tx: Connection, job: Job, wish: Wish) -> bool:
    other = sa.select(JOBS.c.id).where(JOBS.c.key == _for_wish(job, wish).key, JOBS.c.id != job.id)
    return tx.scalar(other) is not None


def _for_wish(job: Job, wish: Wish) -> Job:
    wanted = {name: value for name, value in _plain(wish).items() if name != "explain"}
    facts = {**job.facts, "explain": True} if wish.explain else job.facts
    return replace(job, facts=facts, **wanted)


def _plain(wish: Wish) -> dict[str, Any]:
    return {f.name: getattr(wish, f.name) for f in fields(Wish)}


def _set_of(job: Job) -> str:
    return job_key(job.series_id, job.instance_ids, "", "")
