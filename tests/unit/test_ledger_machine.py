"""The ledger under whatever may happen to it: no job lost, none doubled, none stuck.

Hypothesis drives the real ledger with random events: several workers that finish, fail, crash or
come back from the dead, messages that get lost, clocks that jump, sweeps at any moment, people who
retry, cancel, pause and ask for models, instances that come late. What holds is checked after every
event; at the end everything that can end must do so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from node import errors
from node.edges.journal import Journal
from node.edges.ledger import Ledger
from node.edges.ledger_tables import ATTEMPTS, METADATA
from node.errors import NotPossible
from node.jobs import (
    BY_HAND,
    TRANSITIONS,
    Event,
    Explained,
    Job,
    Priority,
    Reason,
    State,
    Step,
    StepName,
    Wish,
)
from node.pipeline import BY_NAME, STEPS
from node.pipeline.run import record_failure
from tests.ledger_case import Clock

LEASE_S = 7.0
QUEUES = ("io", "pacs", "cpu", "gpu")
AT_MOST = {"gpu": 2}
WISHES = [
    Wish("chest", "v1", "ct_lungs", "digest-1", ("sender",)),
    Wish("airways", "v1", "ct_airways", "digest-2", ("sender",), priority=Priority.URGENT),
    Wish("night", "v1", "ct_bones", "digest-3", ("sender",), priority=Priority.OFF_PEAK),
]
#: How a try of a step may end, or not; the others are classes of errors.
ENDS = [
    "goes on", "dies", "is overtaken", "finishes", "finishes", "sends it back", "explains",
    "PacsUnavailable", "PacsUnavailable", "GeometryError", "IdentityUnsafe", "Incomplete",
    "NodeError",
]  # fmt: skip
PICK = st.integers(0, 12)
TURN = st.tuples(
    st.booleans(), PICK, st.sampled_from(ENDS),
    st.lists(st.sampled_from(WISHES), min_size=1, unique=True),
)  # fmt: skip
#: Workers work after whatever happens: Hypothesis leaves rules out, and these must never be.
TURNS = st.lists(TURN, min_size=4, max_size=8)
Turns = list[tuple[bool, int, str, list[Wish]]]
OPEN = {State.QUEUED, State.RUNNING, State.WAITING}
#: What a person has to decide, or what is over.
AT_REST = set(State) - OPEN
SERIES = st.sampled_from(["series 1", "series 2", "series 3"])


class Ticking(Clock):
    """A clock that the machine moves; every look is later than the one before."""

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


class LedgerMachine(RuleBasedStateMachine):
    """``ledger`` and ``clock`` are set by the test, on one database after the other."""

    ledger: ClassVar[Ledger]
    clock: ClassVar[Clock]

    @initialize(begun=st.lists(st.integers(0, 7), min_size=3, max_size=3))
    def start(self, begun: list[int]) -> None:
        """Three series, each with a job that has come some way already."""
        with self.ledger.database.transaction() as tx:
            for table in reversed(METADATA.sorted_tables):
                tx.execute(sa.delete(table))
        self.held: list[Job] = []
        self.dead: list[Job] = []  # their workers are gone, or about to come back too late
        self.arrived: dict[str, set[int]] = {}
        self.states: dict[str, tuple[State, int]] = {}
        for number, finished in enumerate(begun, start=1):
            self.instances_arrive(f"series {number}", {1}, [])
            for _ in range(finished):
                for queue in QUEUES:
                    self._work(queue)

    # -- series ------------------------------------------------------------------------------

    @rule(series=SERIES, sizes=st.sets(st.integers(1, 4), min_size=1), turns=TURNS)
    def instances_arrive(self, series: str, sizes: set[int], turns: Turns) -> None:
        self.arrived[series] = self.arrived.get(series, set()) | sizes
        self.ledger.open_jobs(series, _study(series), _instances(self.arrived[series]))
        self.workers_work(turns)

    @precondition(lambda self: self.arrived)
    @rule(pick=PICK, turns=TURNS)
    def the_feed_is_read_again(self, pick: int, turns: Turns) -> None:
        series = sorted(self.arrived)[pick % len(self.arrived)]
        self.ledger.open_jobs(series, _study(series), _instances(self.arrived[series]))
        self.workers_work(turns)

    # -- workers -----------------------------------------------------------------------------

    def workers_work(self, turns: Turns) -> None:
        """Each turn: one takes what is due, or goes on with what it has, and perhaps ends it."""
        for fresh, pick, ends, wishes in turns:
            job = self._taken(pick) if fresh or not self.held else self._gone_on(pick)
            if job:
                self._end(job, ends, wishes)

    def _taken(self, pick: int) -> Job | None:
        due = [q for q in QUEUES if self.ledger.due(_steps(q), AT_MOST.get(q))]
        if not due:
            return None
        queue = due[pick % len(due)]
        job = self.ledger.claim_next(_steps(queue), LEASE_S, AT_MOST.get(queue))
        assert job is not None, "what is due can be claimed"
        assert all(other.id != job.id or other.lease != job.lease for other in self.held)
        if job.step is StepName.INFER:
            self.ledger.handed_over(job, BY_NAME[job.step].patience_s)
        return job

    def _gone_on(self, pick: int) -> Job:
        job = self.held.pop(pick % len(self.held))
        self.ledger.started(job, BY_NAME[job.step].deadline_s)
        self.ledger.extend(job, LEASE_S, 0.5)
        return job

    @precondition(lambda self: self.dead)
    @rule(pick=PICK, turns=TURNS)
    def a_dead_worker_comes_back(self, pick: int, turns: Turns) -> None:
        job = self.dead.pop(pick % len(self.dead))
        self._only_its_holder_moves_it(job, lambda: self._finish(job, WISHES[:1]))
        self.workers_work(turns)

    def _end(self, job: Job, ends: str, wishes: list[Wish]) -> None:
        """One of ENDS: how a try of a step may end, or not."""
        told = Explained(Reason("UnsuitableInput", "too thick", "thinner"), ("archive",))
        acts: dict[str, Callable[[], Any]] = {
            "finishes": lambda: self._finish(job, wishes),
            "sends it back": lambda: self.ledger.redirect(job, StepName.ENCODE, {}, "refused"),
            "explains": lambda: self.ledger.explained(job, told),
        }
        if ends == "goes on":
            self.held.append(job)
        elif ends == "dies":
            self.dead.append(job)
        elif ends == "is overtaken":
            self.clock.now += LEASE_S + 1
            self.ledger.release_lost_leases(BY_NAME)
            if other := self._taken(0):
                self.held.append(other)
            self._only_its_holder_moves_it(job, lambda: self._finish(job, wishes))
        elif ends in acts:
            self._only_its_holder_moves_it(job, acts[ends])
        else:
            error = getattr(errors, ends)("something is wrong", remedy="mend it")
            self._only_its_holder_moves_it(job, lambda: record_failure(self.ledger, job, error))

    # -- time and the sweeper ----------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.5, 8.0, 1000.0, 4000.0, 8 * 86400.0, -3600.0]), turns=TURNS)
    def time_passes_or_jumps_and_the_sweeper_sweeps(self, seconds: float, turns: Turns) -> None:
        self.clock.now += seconds
        for job in self.ledger.release_lost_leases(BY_NAME):
            assert job.state in (State.QUEUED, State.FAILED)
            assert job.crashes <= BY_NAME[StepName.RECEIVE].max_crashes
        self.workers_work(turns)

    # -- people ------------------------------------------------------------------------------

    @rule(pick=PICK, retry=st.booleans(), turns=TURNS)
    def a_person_decides(self, pick: int, retry: bool, turns: Turns) -> None:
        jobs = self.ledger.jobs()
        job = jobs[pick % len(jobs)]
        event = Event.RETRY if retry else Event.CANCEL
        possible = (job.state, event) in TRANSITIONS
        try:
            (self.ledger.retry if retry else self.ledger.cancel)(job.id)
        except NotPossible:
            assert not possible
        else:
            assert possible
        self.workers_work(turns)

    @precondition(lambda self: self.arrived)
    @rule(pick=PICK, turns=TURNS)
    def a_person_asks_for_a_model(self, pick: int, turns: Turns) -> None:
        series = sorted(self.arrived)[pick % len(self.arrived)]
        asked = replace(WISHES[0], rule=BY_HAND, rule_version=BY_HAND)
        instances = _instances(self.arrived[series])
        job = self.ledger.request(series, _study(series), instances, asked)
        assert job.state in OPEN | AT_REST - {State.SUPERSEDED}
        self.workers_work(turns)

    @rule(queue=st.sampled_from(QUEUES), turns=TURNS)
    def a_person_pauses_for_a_moment(self, queue: str, turns: Turns) -> None:
        self.ledger.pause(f"queue:{queue}")
        assert self.ledger.claim_next(_steps(queue), LEASE_S) is None
        self.ledger.resume(f"queue:{queue}")
        self.workers_work(turns)

    # -- what always holds -------------------------------------------------------------------

    @invariant()
    def nothing_is_lost_doubled_or_unexplained(self) -> None:
        jobs = self.ledger.jobs(limit=1000)
        assert len({job.key for job in jobs}) == len(jobs)
        assert {job.id for job in jobs} >= set(self.states), "a job is gone"
        for series, sizes in self.arrived.items():
            of_it = [job for job in jobs if job.series_id == series]
            whole = set(_instances(sizes))
            assert any(set(job.instance_ids) == whole for job in of_it), "nobody works on it"
        unended = sa.select(ATTEMPTS.c.job_id).where(ATTEMPTS.c.ended_at.is_(None))
        with self.ledger.database.transaction() as tx:
            running = sorted(tx.scalars(unended))
        assert running == sorted(job.id for job in jobs if job.state is State.RUNNING)
        for job in jobs:
            assert job.lease >= self.states.get(job.id, (job.state, 0))[1], "leases only grow"
            if job.state in (State.REJECTED, State.FAILED, State.QUARANTINED, State.INCOMPLETE):
                assert job.cause and job.remedy
            assert (job.next_try_at is not None) >= (job.state is State.WAITING)
        self.states = {job.id: (job.state, job.lease) for job in jobs}

    def teardown(self) -> None:
        """From wherever it got to: with workers that live, every job comes to rest."""
        if not hasattr(self, "held"):
            return
        for _ in range(200):
            self.clock.now += 4000  # beyond every lease, deadline and back-off
            self.ledger.release_lost_leases(BY_NAME)
            while any(self._work(queue) for queue in QUEUES):
                pass
            if not [job for job in self.ledger.jobs(limit=1000) if job.state in OPEN]:
                break
        assert not [job for job in self.ledger.jobs(limit=1000) if job.state in OPEN], "stuck"
        self._the_journal_tells_it_all()

    # -- inside ------------------------------------------------------------------------------

    def _work(self, queue: str) -> bool:
        job = self.ledger.claim_next(_steps(queue), LEASE_S, AT_MOST.get(queue))
        if job:
            self._finish(job, WISHES[:2])
        return job is not None

    def _finish(self, job: Job, wishes: list[Wish]) -> object:
        if job.step is StepName.ROUTE:
            asked = job.facts.get("wish")
            wanted = [replace(WISHES[0], rule=BY_HAND, rule_version=BY_HAND)] if asked else wishes
            return self.ledger.fork(job, wanted)
        return self.ledger.finish(job, {})

    def _only_its_holder_moves_it(self, job: Job, act: Callable[[], Any]) -> None:
        before = self.ledger.job(job.id)
        assert before is not None
        act()
        after = self.ledger.job(job.id)
        assert after is not None
        ours = before.state is State.RUNNING and before.lease == job.lease
        assert (after != before) == ours, "only who holds the lease changes the job"

    def _the_journal_tells_it_all(self) -> None:
        journal = Journal(self.ledger.database)
        for study in journal.studies():
            assert journal.verify(study).problem == ""
        for job in self.ledger.jobs(limit=1000):
            told = [
                one.entry for one in journal.entries(job.study_id) if one.entry["job"] == job.id
            ]
            assert told[0]["event"] == Event.OPEN
            assert told[-1]["state"] == job.state
            before: State | None = None
            for entry in told:
                state = TRANSITIONS[before, Event(entry["event"])]
                assert state == entry["state"], "the journal skips something"
                before = state


def _study(series: str) -> str:
    return "study A" if series == "series 1" else "study B"


def _instances(sizes: set[int]) -> list[str]:
    return [f"instance {number}" for number in sorted(sizes)]


def _steps(queue: str) -> list[Step]:
    return [step for step in STEPS if step.queue == queue]


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_no_job_is_lost_doubled_or_stuck_whatever_happens(
    database: str, request: pytest.FixtureRequest
) -> None:
    """The same events on both; SQLite in memory, because nothing here asks what a disk keeps."""
    in_memory = database == "sqlite"
    url = "sqlite://" if in_memory else request.getfixturevalue("postgres").database()
    LedgerMachine.clock = Ticking()
    LedgerMachine.ledger = Ledger(url, clock=LedgerMachine.clock)
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        LedgerMachine,
        settings=settings(
            max_examples=25 if in_memory else 6,
            stateful_step_count=20,
            suppress_health_check=list(HealthCheck),
        ),
    )
    LedgerMachine.ledger.database.close()
