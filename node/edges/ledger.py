"""The ledger: every job, lease and attempt, in one database. It decides; the broker only wakes.

SQLAlchemy over SQLite (one machine) or PostgreSQL (many). Every change of state goes through
``node.jobs.TRANSITIONS``, under the lock of the job's study, and into the study's journal, in one
transaction. Nothing here comes from a patient: instances are known by Orthanc's hashes, causes by
tags and keywords.

What a running step needs is here; what sweepers and people do is in the two classes it is made of.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from node.edges.arrivals import mark_quiet
from node.edges.database import Database
from node.edges.ledger_moves import Moves, for_wish, held_by, taken
from node.edges.ledger_people import People
from node.edges.ledger_sweeps import Sweeps, claimable
from node.edges.ledger_tables import JOBS, job_of
from node.errors import Gone
from node.jobs import (
    BY_HAND,
    Event,
    Explained,
    Job,
    State,
    Step,
    StepName,
    Wish,
    after,
    tried_since,
)
from node.pipeline.delivery import read_deliveries
from node.pipeline.outbound import lasting
from node.pipeline.working_data import RESULT_KEY

#: Facts of one delivery, which the next one does not share.
_OF_DELIVERY = ("unsuitable", "results", "plan", "delivery")
#: How many jobs to try for: others may take the first ones in the same moment.
_CANDIDATES = 8


class Ledger(Sweeps, People):
    """Jobs and everything that happens to them. Safe to share between threads and processes."""

    def __init__(
        self, url: str, *, clock: Callable[[], float] | None = None, who: str = "segnode"
    ) -> None:
        super().__init__(Database(url, clock=clock), who)

    # -- a job's beginning -----------------------------------------------------------------

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

        Jobs of the series that know fewer instances are superseded, unless something of them has
        been sent: then a newer result follows theirs. A model that a person asked for is run again
        on what there is now. Jobs of the same instances that ended without a result begin anew; if
        some of them ended because the instances were gone, these only.

        None, too, when a job knows more instances and goes on or is confirmed: Orthanc has lost
        some with its index, or a series that was deleted is sent again bit by bit.
        """
        job = Job(uuid.uuid4().hex, series_id, study_id, tuple(sorted(instance_ids)))
        if not instance_ids:
            with self.database.transaction() as tx:
                mark_quiet(tx, series_id, as_of)
            return None
        with self.moves(study_id) as moves:
            mark_quiet(moves.tx, series_id, as_of)
            known = self._of_series(moves, series_id)
            if any(_covers(one, job) for one in known):
                return None
            same = [one for one in known if set(one.instance_ids) == set(instance_ids)]
            asked_again = self._supersede(moves, known, job)
            for wanted in asked_again:
                if not any(one.rule == BY_HAND and one.key == wanted.key for one in same):
                    moves.insert(wanted)
            if ruled := [one for one in same if one.rule != BY_HAND]:
                # Where instances were only missed for a while, nobody takes a decision back.
                missed = [one for one in ruled if one.error == Gone.__name__]
                again = [self._begin_anew(moves, one) for one in missed or ruled]
                return next((one for one in again if one), None)
            return moves.insert(job)

    def _of_series(self, moves: Moves, series_id: str) -> list[Job]:
        query = sa.select(JOBS).where(JOBS.c.series_id == series_id)
        found = moves.tx.execute(query.order_by(JOBS.c.created_at, JOBS.c.id).with_for_update())
        return [job_of(row._mapping) for row in found]

    def _supersede(self, moves: Moves, known: Sequence[Job], newer: Job) -> list[Job]:
        """End the jobs that know fewer instances; the jobs by hand that have to follow them."""
        follow: dict[str, Job] = {}
        for older in known:
            if not set(older.instance_ids) < set(newer.instance_ids):
                continue
            if not _being_sent(older):
                moves.happen(
                    older, Event.SUPERSEDE, next_try_at=None,
                    cause="More instances of the series have arrived",
                    remedy="Nothing to do: see the newer job of this series.", error="",
                )  # fmt: skip
            if "wish" in older.facts and older.state not in (State.CANCELED, State.SUPERSEDED):
                fresh = replace(newer, id=uuid.uuid4().hex, facts={"wish": older.facts["wish"]})
                following = replace(fresh, **{name: getattr(older, name) for name in _OF_WISH})
                follow[following.key] = following
        return list(follow.values())

    def _begin_anew(self, moves: Moves, job: Job) -> Job | None:
        wish = {"wish": job.facts["wish"]} if "wish" in job.facts else {}
        return moves.happen(
            job, Event.ARRIVED_AGAIN, step=StepName.RECEIVE, facts={**wish, **lasting(job)},
            next_try_at=None, cause="", remedy="", error="",
        )  # fmt: skip

    # -- a step's life ---------------------------------------------------------------------

    def claim_next(
        self, steps: Sequence[Step], lease_s: float, at_most: int | None = None
    ) -> Job | None:
        """Take the job whose turn it is, of those that wait for one of ``steps``.

        None when nothing is due, the queue is paused, or ``at_most`` of them run already.
        """
        names = [step.name for step in steps]
        running = sa.select(sa.func.count()).where(
            JOBS.c.state == State.RUNNING, JOBS.c.step.in_(names)
        )
        with self.database.transaction() as tx:
            if self._paused_queues(tx).intersection(step.queue for step in steps):
                return None
            if at_most is not None and (tx.scalar(running) or 0) >= at_most:
                return None
            due = sa.select(JOBS).where(claimable(self.database.clock()), JOBS.c.step.in_(names))
            turn = due.order_by(JOBS.c.rank, JOBS.c.id).limit(_CANDIDATES)
            candidates = [job_of(row._mapping) for row in tx.execute(turn)]
        deadlines = {step.name: step.deadline_s for step in steps}
        taken_ = (self._take(one, lease_s, deadlines[one.step]) for one in candidates)
        return next((one for one in taken_ if one), None)

    def _take(self, job: Job, lease_s: float, deadline_s: float) -> Job | None:
        with self.moves(job.study_id) as moves:
            due = sa.and_(JOBS.c.id == job.id, JOBS.c.step == job.step, claimable(moves.now))
            found = moves.found(due)
            if found is None:
                return None
            due_at = max(found.updated_at, found.next_try_at or 0.0)
            return moves.happen(
                found, Event.CLAIM, attempt=found.attempt + 1, lease=found.lease + 1,
                lease_until=moves.now + lease_s, deadline_at=moves.now + deadline_s,
                next_try_at=None, progress=0.0,
                step_since=tried_since(found.step_since, due_at, moves.now),
            )  # fmt: skip

    def extend(self, job: Job, lease_s: float, progress: float | None = None) -> bool:
        """Keep the lease of a running step; False when it is not ours any more, or overdue."""
        now = self.database.clock()
        values: dict[str, Any] = {
            "lease_until": sa.case(
                (JOBS.c.deadline_at < now + lease_s, JOBS.c.deadline_at), else_=now + lease_s
            ),
            "updated_at": now,
        }
        if progress is not None:
            values["progress"] = progress
        alive = sa.or_(JOBS.c.deadline_at.is_(None), JOBS.c.deadline_at > now)
        with self.database.transaction() as tx:
            kept = tx.execute(sa.update(JOBS).where(held_by(job), alive).values(**values))
            return bool(kept.rowcount == 1)

    def note(self, job: Job, facts: Mapping[str, Any]) -> bool:
        """Keep what a running step has reached: the next try begins there, even after a kill."""
        with self.moves(job.study_id) as moves:
            held = moves.holds(job)
            if held is None:
                return False
            changed = sa.update(JOBS).where(held_by(job))
            moves.tx.execute(changed.values(facts={**held.facts, **facts}))
            return True

    def finish(self, job: Job, facts: Mapping[str, Any]) -> Job | None:
        """The step is done: add its facts, make the next step due. None when not ours any more."""
        with self.moves(job.study_id) as moves:
            held = moves.holds(job)
            if held is None:
                return None
            following = job.step.next
            event = Event.STEP_DONE if following else Event.LAST_STEP_DONE
            return moves.happen(
                held, event, outcome="done", step=following or job.step, progress=1.0,
                facts={**held.facts, **facts}, cause="", remedy="", error="",
            )  # fmt: skip

    def redirect(
        self, job: Job, step: StepName, facts: Mapping[str, Any], cause: str
    ) -> Job | None:
        """The job goes on at ``step`` with fresh attempts. None when not ours any more."""
        return self._stop(
            job, Event.REDIRECT, facts, outcome=f"on to {step}", step=step,
            cause=cause, remedy="", error="",
        )  # fmt: skip

    def fork(self, job: Job, wishes: Sequence[Wish]) -> list[Job]:
        """Route is done: this job takes the first wish, one new job is made of each other.

        A job that was routed before keeps its model and rule if they are still wished for.
        """
        with self.moves(job.study_id) as moves:
            held = moves.holds(job)
            if held is None:
                return []
            mine = sorted(wishes, key=lambda wish: for_wish(held, wish).key != held.key)
            open_wishes = [wish for wish in mine if not taken(moves.tx, held, wish)]
            if not open_wishes:
                moves.happen(
                    held, Event.SUPERSEDE, outcome="done",
                    cause="Another job has the same instances and model",
                    remedy="Nothing to do: see the other job of this series.",
                )  # fmt: skip
                return []
            first, *others = open_wishes
            wanted = vars(for_wish(held, first))
            facts = dict(wanted["facts"])
            if first.model_digest != held.model_digest:  # another result, with UIDs of its own
                facts.pop(RESULT_KEY, None)
            changes = {name: wanted[name] for name in _OF_WISH} | {"facts": facts}
            following = moves.happen(
                held, Event.STEP_DONE, outcome="done", step=StepName.DEIDENTIFY,
                cause="", remedy="", error="", **changes,
            )  # fmt: skip
            made = [following] if following else []
            shared = {k: v for k, v in held.facts.items() if k not in lasting(held)}
            for wish in others:
                twin = Job(
                    uuid.uuid4().hex, job.series_id, job.study_id, job.instance_ids,
                    StepName.DEIDENTIFY, facts=shared,
                )  # fmt: skip
                made.append(moves.insert(for_wish(twin, wish)))
            return made

    def wait(
        self, job: Job, *, cause: str, remedy: str, error: str, delay_s: float,
        facts: Mapping[str, Any] | None = None, patience_s: float | None = None,
    ) -> None:  # fmt: skip
        """Something outside did not answer: try the step again after ``delay_s``.

        However often, as long as it has not been tried for ``patience_s``: then it is given up.
        """
        next_try_at = self.database.clock() + delay_s
        told = {"cause": cause, "remedy": remedy, "error": error}
        if patience_s is not None and next_try_at > job.step_since + patience_s:
            self._stop(job, Event.PATIENCE_ENDED, facts, **told)
            return
        self._stop(job, Event.UNAVAILABLE, facts, next_try_at=next_try_at, **told)

    def end(
        self, job: Job, event: Event, *, cause: str, remedy: str, error: str,
        facts: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """The job stops here, kept with its cause and remedy; ``facts`` are added to its own."""
        self._stop(job, event, facts, cause=cause, remedy=remedy, error=error)

    def explained(self, job: Job, done: Explained) -> None:
        """Stop a job whose destinations keep the document that says why there is no result.

        Its working data is gone: a retry begins where the series is de-identified.
        """
        dropped = dict.fromkeys(_OF_DELIVERY)
        # A result may replace the page, when more instances come.
        self._stop(
            job, Event.EXPLAINED,
            {**dropped, "explained": list(done.destinations), **lasting(job)},
            step=StepName.DEIDENTIFY, **vars(done.reason),
        )  # fmt: skip

    def _stop(
        self, job: Job, event: Event, facts: Mapping[str, Any] | None, *, outcome: str = "",
        **changes: Any,
    ) -> Job | None:  # fmt: skip
        """The try ends; ``facts`` are added to the job's, one that is None is taken from them."""
        with self.moves(job.study_id) as moves:
            held = moves.holds(job)
            if held is None:
                return None
            kept = {k: v for k, v in {**held.facts, **(facts or {})}.items() if v is not None}
            ended = outcome or changes.get("error") or ""
            return moves.happen(held, event, outcome=ended, facts=kept, **changes)


#: What a wish says of a job.
_OF_WISH = ("rule", "rule_version", "model", "model_digest", "destinations", "priority")


def _covers(job: Job, part: Job) -> bool:
    """The job has, or may still get, a result of all of ``part`` and of more."""
    more = job.rule != BY_HAND and set(part.instance_ids) < set(job.instance_ids)
    return more and after(job.state, Event.ARRIVED_AGAIN) is None


def _being_sent(job: Job) -> bool:
    """A destination may hold something of it: it goes on to its end, and a newer one follows.

    What waits for a destination that has nothing of it yet (it was down all night) never goes out.
    """
    if job.step is not StepName.DELIVER:
        return job.step is StepName.CONFIRM
    some = any(one.accepted or one.may_hold for one in read_deliveries(job).values())
    return job.state is State.RUNNING or job.crashes > 0 or some
