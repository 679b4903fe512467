"""What the ledger tells: jobs, their tries, and how many there are of each."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import sqlalchemy as sa

from node.edges.database import Database
from node.edges.journal import Chain
from node.edges.ledger_moves import Moves, read_job
from node.edges.ledger_tables import ATTEMPTS, JOBS, job_of
from node.errors import NoMatchingModel, NotPossible
from node.jobs import Attempt, Job, State, StepName

_UNWANTED = sa.and_(JOBS.c.state == State.REJECTED, JOBS.c.error == NoMatchingModel.__name__)


class Lookups:
    """The database, in whose name it is changed, and the questions that change nothing.

    ``who`` stands in the journal: ``worker``, ``sweeper``, ``person at the console`` ….
    """

    def __init__(self, database: Database, who: str) -> None:
        self.database, self.who = database, who

    @contextmanager
    def moves(self, study_id: str) -> Iterator[Moves]:
        """A transaction on the jobs of one study, which is locked for its length."""
        with self.database.transaction() as tx:
            yield Moves(tx, self.database.clock(), self.who, Chain(tx, study_id))

    def job(self, job_id: str) -> Job | None:
        """One job, or None."""
        with self.database.transaction() as tx:
            return read_job(tx, job_id)

    def find(self, beginning: str) -> Job:
        """The one job whose id begins like this.

        Raises
        ------
        NotPossible
            No job does, or several do.
        """
        query = sa.select(JOBS).where(JOBS.c.id.startswith(beginning, autoescape=True)).limit(2)
        with self.database.transaction() as tx:
            found = [job_of(row._mapping) for row in tx.execute(query)]
        if len(found) != 1:
            how_many = "more than one job" if found else "no job"
            raise NotPossible(f"There is {how_many} whose id begins with {beginning}.")
        return found[0]

    def jobs(
        self,
        limit: int = 200,
        study_id: str | None = None,
        states: Collection[State] | None = None,
        unwanted: bool | None = None,
    ) -> list[Job]:
        """The newest jobs first; of one study, or in some states, if asked.

        ``unwanted``: also the series that no rule wants (True), or without them (False). They are
        rejected, and nobody has to do anything about them.
        """
        query = sa.select(JOBS).order_by(JOBS.c.created_at.desc(), JOBS.c.id).limit(limit)
        if study_id is not None:
            query = query.where(JOBS.c.study_id == study_id)
        if states is not None:
            among: sa.ColumnElement[bool] = JOBS.c.state.in_(list(states))
            if unwanted is not None:
                among = sa.or_(among, _UNWANTED) if unwanted else sa.and_(among, ~_UNWANTED)
            query = query.where(among)
        with self.database.transaction() as tx:
            return [job_of(row._mapping) for row in tx.execute(query)]

    def jobs_of_series(self, series_id: str) -> list[Job]:
        """Every job of a series, the oldest first."""
        query = sa.select(JOBS).where(JOBS.c.series_id == series_id).order_by(JOBS.c.created_at)
        with self.database.transaction() as tx:
            return [job_of(row._mapping) for row in tx.execute(query)]

    def counts(self, study_id: str | None = None) -> Mapping[State, int]:
        """How many jobs are in each state."""
        query = sa.select(JOBS.c.state, sa.func.count()).group_by(JOBS.c.state)
        if study_id is not None:
            query = query.where(JOBS.c.study_id == study_id)
        with self.database.transaction() as tx:
            return {State(state): count for state, count in tx.execute(query)}

    def unwanted(self, study_id: str | None = None) -> int:
        """How many of the rejected are series that no rule wants."""
        query = sa.select(sa.func.count()).select_from(JOBS).where(_UNWANTED)
        if study_id is not None:
            query = query.where(JOBS.c.study_id == study_id)
        with self.database.transaction() as tx:
            return int(tx.scalar(query) or 0)

    def attempts(self, job_id: str) -> list[Attempt]:
        """Every try of every step of a job, oldest first."""
        query = sa.select(ATTEMPTS).where(ATTEMPTS.c.job_id == job_id).order_by(ATTEMPTS.c.id)
        with self.database.transaction() as tx:
            return [
                Attempt(StepName(r.step), r.attempt, r.started_at, r.ended_at, r.outcome)
                for r in tx.execute(query)
            ]
