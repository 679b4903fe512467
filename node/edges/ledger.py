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
from sqlalchemy.engine import Connection, Engine, RowMapping

from node.jobs import BY_HAND, Attempt, Event, Job, State, StepName, Wish, after, job_key

_meta = sa.MetaData()

_cursors = sa.Table(
    "cursors",
    _meta,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)

#: A series that received something. ``quiet`` once a job was made of what it held.
_arrivals = sa.Table(
    "arrivals",
    _meta,
    sa.Column("series_id", sa.String, primary_key=True),
    sa.Column("last_change_at", sa.Float, nullable=False),
    sa.Column("quiet", sa.Boolean, nullable=False, index=True),
)

_jobs = sa.Table(
    "jobs",
    _meta,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("key", sa.String, nullable=False, unique=True),
    sa.Column("series_id", sa.String, nullable=False, index=True),
    sa.Column("study_id", sa.String, nullable=False, index=True),
    sa.Column("instance_ids", sa.JSON, nullable=False),
    sa.Column("instance_set", sa.String, nullable=False),
    sa.Column("step", sa.String, nullable=False),
    sa.Column("state", sa.String, nullable=False, index=True),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("model", sa.String, nullable=False),
    sa.Column("model_digest", sa.String, nullable=False),
    sa.Column("rule", sa.String, nullable=False),
    sa.Column("rule_version", sa.String, nullable=False),
    sa.Column("destinations", sa.JSON, nullable=False),
    sa.Column("facts", sa.JSON, nullable=False),
    sa.Column("cause", sa.String, nullable=False),
    sa.Column("remedy", sa.String, nullable=False),
    sa.Column("error", sa.String, nullable=False),
    sa.Column("progress", sa.Float, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("updated_at", sa.Float, nullable=False),
    sa.Column("next_try_at", sa.Float),
    sa.Column("lease_until", sa.Float),
    sa.Column("wake_at", sa.Float),  # when the sweeper may send the (next) wake-up
)

_attempts = sa.Table(
    "attempts",
    _meta,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("job_id", sa.String, nullable=False, index=True),
    sa.Column("step", sa.String, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("started_at", sa.Float, nullable=False),
    sa.Column("ended_at", sa.Float),
    sa.Column("outcome", sa.String, nullable=False),
)

_JOB_FIELDS = tuple(f.name for f in fields(Job))

#: A wake-up that brought nobody is sent again after this long: the broker may have lost it.
RESEND_S = 30.0
#: Who ends a step wakes the next one itself; the sweeper does it if that has not happened by then.
_WAKE_GRACE_S = 2.0


class NotPossible(ValueError):
    """The action does not fit the job's state; the message is fit to show."""


class Ledger:
    """Jobs and everything that happens to them. Safe to share between threads and processes."""

    def __init__(self, url: str, *, clock: Callable[[], float] = time.time) -> None:
        self._engine = _engine(url)
        self._clock = clock
        _meta.create_all(self._engine)

    # -- the changes feed ------------------------------------------------------------------

    def cursor(self, name: str) -> int:
        """The last sequence number read of a feed; 0 when it was never read."""
        with self._transaction() as tx:
            value = tx.scalar(sa.select(_cursors.c.value).where(_cursors.c.name == name))
        return int(value or 0)

    def record_arrivals(self, name: str, value: int, series_ids: Iterable[str]) -> None:
        """Note which series received something and move the feed's cursor, both or neither."""
        now = self._clock()
        with self._transaction() as tx:
            for series_id in set(series_ids):
                _upsert(
                    tx,
                    _arrivals,
                    {"series_id": series_id},
                    {"last_change_at": now, "quiet": False},
                )
            _upsert(tx, _cursors, {"name": name}, {"value": value})

    def quiet_series(self, quiet_s: float) -> list[str]:
        """Series that have received nothing for ``quiet_s`` seconds, and no job made of it yet."""
        query = sa.select(_arrivals.c.series_id).where(
            _arrivals.c.quiet.is_(False),
            _arrivals.c.last_change_at <= self._clock() - quiet_s,
        )
        with self._transaction() as tx:
            return list(tx.scalars(query))

    def open_jobs(self, series_id: str, study_id: str, instance_ids: Sequence[str]) -> Job | None:
        """Make the job of a quiet series; None when the same instances have had theirs.

        Jobs of the same series that have not delivered yet are superseded: they know too little.
        """
        job = Job(uuid.uuid4().hex, series_id, study_id, tuple(sorted(instance_ids)))
        with self._transaction() as tx:
            _upsert(tx, _arrivals, {"series_id": series_id}, {"quiet": True}, insert=False)
            same = sa.select(_jobs.c.id).where(
                _jobs.c.series_id == series_id,
                _jobs.c.instance_set == _set_of(job),
                _jobs.c.rule != BY_HAND,  # asking for a model by hand does not silence the rules
            )
            if not instance_ids or tx.scalar(same):
                return None
            for older in tx.execute(sa.select(_jobs).where(_jobs.c.series_id == series_id)):
                self._happen(tx, _job(older._mapping), Event.SUPERSEDE)
            self._insert(tx, job)
        return self.job(job.id)

    # -- a step's life ---------------------------------------------------------------------

    def claim(self, job_id: str, step: StepName, lease_s: float) -> Job | None:
        """Take the step: attempt + 1 and a lease. None when someone else has it or it is past."""
        now = self._clock()
        claimable = sa.and_(
            _jobs.c.id == job_id,
            _jobs.c.step == step,
            _jobs.c.state.in_([State.QUEUED, State.WAITING]),
            sa.or_(_jobs.c.next_try_at.is_(None), _jobs.c.next_try_at <= now),
        )
        with self._transaction() as tx:
            claimed = tx.execute(
                sa.update(_jobs)
                .where(claimable)
                .values(
                    state=State.RUNNING,
                    attempt=_jobs.c.attempt + 1,
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
                sa.insert(_attempts).values(
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
            kept = tx.execute(sa.update(_jobs).where(_held_by(job)).values(**values))
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

    def end(self, job: Job, event: Event, *, cause: str, remedy: str, error: str) -> None:
        """The job stops here, kept with its cause and remedy."""
        self._stop(job, event, cause, remedy, error, wake_at=None)

    # -- the sweeper -----------------------------------------------------------------------

    def due(self) -> list[Job]:
        """Jobs whose step nobody has taken yet; each is due again after ``RESEND_S``."""
        now = self._clock()
        with self._transaction() as tx:
            query = sa.select(_jobs).where(
                _jobs.c.state.in_([State.QUEUED, State.WAITING]), _jobs.c.wake_at <= now
            )
            found = [_job(row._mapping) for row in tx.execute(query)]
            self.mark_sent(found, tx)
        return found

    def mark_sent(self, jobs: Sequence[Job], tx: Connection | None = None) -> None:
        """A wake-up was sent for these: none other is due before ``RESEND_S``."""
        if not jobs:
            return
        statement = (
            sa.update(_jobs)
            .where(_jobs.c.id.in_([job.id for job in jobs]), _jobs.c.wake_at.is_not(None))
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
            query = sa.select(_jobs).where(
                _jobs.c.state == State.RUNNING, _jobs.c.lease_until < now
            )
            lost = [_job(row._mapping) for row in tx.execute(query)]
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
            row = tx.execute(sa.select(_jobs).where(_jobs.c.id == job_id)).one_or_none()
        return _job(row._mapping) if row else None

    def find(self, beginning: str) -> Job:
        """The one job whose id begins like this.

        Raises
        ------
        NotPossible
            No job does, or several do.
        """
        query = sa.select(_jobs).where(_jobs.c.id.startswith(beginning, autoescape=True)).limit(2)
        with self._transaction() as tx:
            found = [_job(row._mapping) for row in tx.execute(query)]
        if len(found) != 1:
            how_many = "more than one job" if found else "no job"
            raise NotPossible(f"There is {how_many} whose id begins with {beginning}.")
        return found[0]

    def jobs(self, limit: int = 200, study_id: str | None = None) -> list[Job]:
        """The newest jobs first, of one study if asked."""
        query = sa.select(_jobs).order_by(_jobs.c.created_at.desc(), _jobs.c.id).limit(limit)
        if study_id is not None:
            query = query.where(_jobs.c.study_id == study_id)
        with self._transaction() as tx:
            return [_job(row._mapping) for row in tx.execute(query)]

    def attempts(self, job_id: str) -> list[Attempt]:
        """Every try of every step of a job, oldest first."""
        query = sa.select(_attempts).where(_attempts.c.job_id == job_id).order_by(_attempts.c.id)
        with self._transaction() as tx:
            return [
                Attempt(StepName(r.step), r.attempt, r.started_at, r.ended_at, r.outcome)
                for r in tx.execute(query)
            ]

    def retry(self, job_id: str) -> Job:
        """Start the step at which a job stopped once more, with fresh attempts."""
        return self._by_person(
            job_id, Event.RETRY, attempt=0, cause="", remedy="", error="",
            next_try_at=None, wake_at=self._clock(),
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
        same = sa.select(_jobs).where(
            _jobs.c.series_id == series_id,
            _jobs.c.instance_set == _set_of(asked),
            _jobs.c.model_digest == wish.model_digest,
        )
        with self._transaction() as tx:
            row = tx.execute(same).first()
            if row:
                return _job(row._mapping)
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
        return _job(tx.execute(sa.select(_jobs).where(_jobs.c.id == job_id)).one()._mapping)

    def _insert(self, tx: Connection, job: Job) -> None:
        now = self._clock()
        row = {name: getattr(job, name) for name in _JOB_FIELDS}
        row |= {
            "instance_ids": list(job.instance_ids), "destinations": list(job.destinations),
            "facts": dict(job.facts), "key": job.key, "instance_set": _set_of(job),
            "created_at": now, "updated_at": now, "wake_at": now + _WAKE_GRACE_S,
        }  # fmt: skip
        tx.execute(sa.insert(_jobs).values(**row))

    def _happen(self, tx: Connection, job: Job, event: Event, **values: Any) -> bool:
        """Move a job along the transition table, if ``event`` can happen to it."""
        state = after(job.state, event)
        if state is None:
            return False
        for name in ("model", "model_digest", "rule", "rule_version"):
            values.setdefault(name, getattr(job, name))
        values.setdefault("destinations", list(job.destinations))
        tx.execute(
            sa.update(_jobs)
            .where(_jobs.c.id == job.id)
            .values(state=state, key=job.key, updated_at=self._clock(), **values)
        )
        return True

    def _still_held(self, tx: Connection, job: Job) -> bool:
        return tx.scalar(sa.select(_jobs.c.id).where(_held_by(job))) is not None

    def _end_attempt(self, tx: Connection, job: Job, outcome: str) -> None:
        tx.execute(
            sa.update(_attempts)
            .where(
                _attempts.c.job_id == job.id,
                _attempts.c.step == job.step,
                _attempts.c.attempt == job.attempt,
                _attempts.c.ended_at.is_(None),
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
            row = tx.execute(sa.select(_jobs).where(_jobs.c.id == job_id)).one_or_none()
            if row is None:
                raise NotPossible(f"There is no job {job_id}; `segnode jobs` lists them.")
            job = _job(row._mapping)
            self._end_attempt(tx, job, event)
            if not self._happen(tx, job, event, **values):
                raise NotPossible(f"A job that is {job.state} cannot be changed by {event}.")
            return self._read(tx, job_id)


def _engine(url: str) -> Engine:
    engine = sa.create_engine(url, pool_pre_ping=True)
    if engine.dialect.name == "sqlite":

        @sa.event.listens_for(engine, "connect")
        def _on_connect(connection: Any, _record: Any) -> None:
            connection.isolation_level = None  # transactions begin below, not on first write
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")  # an answer given survives power loss
            connection.execute("PRAGMA busy_timeout=30000")

        @sa.event.listens_for(engine, "begin")
        def _on_begin(connection: Connection) -> None:
            # A read that turns into a write would otherwise fail with SQLITE_BUSY_SNAPSHOT.
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _upsert(
    tx: Connection, table: sa.Table, key: Mapping[str, Any], values: Mapping[str, Any],
    *, insert: bool = True,
) -> None:  # fmt: skip
    where = sa.and_(*(table.c[name] == value for name, value in key.items()))
    changed = tx.execute(sa.update(table).where(where).values(**values))
    if insert and changed.rowcount == 0:
        tx.execute(sa.insert(table).values(**key, **values))


def _held_by(job: Job) -> sa.ColumnElement[bool]:
    return sa.and_(
        _jobs.c.id == job.id,
        _jobs.c.step == job.step,
        _jobs.c.attempt == job.attempt,
        _jobs.c.state == State.RUNNING,
    )


def _taken(tx: Connection, job: Job, wish: Wish) -> bool:
    other = sa.select(_jobs.c.id).where(
        _jobs.c.key == _for_wish(job, wish).key, _jobs.c.id != job.id
    )
    return tx.scalar(other) is not None


def _for_wish(job: Job, wish: Wish) -> Job:
    return replace(job, **_plain(wish))


def _plain(wish: Wish) -> dict[str, Any]:
    return {f.name: getattr(wish, f.name) for f in fields(Wish)}


def _set_of(job: Job) -> str:
    return job_key(job.series_id, job.instance_ids, "", "")


def _job(row: RowMapping) -> Job:
    values = {name: row[name] for name in _JOB_FIELDS}
    values["instance_ids"] = tuple(values["instance_ids"])
    values["destinations"] = tuple(values["destinations"])
    values["step"] = StepName(values["step"])
    values["state"] = State(values["state"])
    return Job(**values)
