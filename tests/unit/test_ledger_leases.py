"""A step has one worker at a time: leases, deadlines, heartbeats, crashes."""

from __future__ import annotations

import threading

import pytest
import sqlalchemy as sa

from node.edges.arrivals import Arrivals, Cursor
from node.edges.ledger import Ledger
from node.edges.sweeper import Sweeper
from node.errors import PacsUnavailable
from node.jobs import Job, State, StepName
from node.pipeline import BY_NAME, STEPS
from node.pipeline.lease import kept_alive
from node.pipeline.run import Terms, record_failure
from tests.ledger_case import Clock, at_step, claim, claimed, opened


def test_a_step_is_claimed_by_one_worker(ledger: Ledger) -> None:
    """The second claim finds nothing to do."""
    job = opened(ledger)
    assert claim(ledger, job, 30) is not None
    assert claim(ledger, job, 30) is None


def test_a_dead_workers_step_is_given_to_another_and_the_dead_one_cannot_finish_it(
    ledger: Ledger, clock: Clock
) -> None:
    """A lease that ran out is released; what its old holder records is ignored."""
    job = opened(ledger)
    dead = claimed(ledger, job)
    clock.now += 31
    assert [lost.id for lost in ledger.release_lost_leases(BY_NAME)] == [job.id]
    assert ledger.due(STEPS) == 1
    alive = claimed(ledger, job)
    assert alive.attempt == 2
    assert ledger.finish(dead, {"by": "dead"}) is None
    finished = ledger.finish(alive, {"by": "alive"})
    assert finished is not None
    assert finished.step is StepName.ROUTE
    assert finished.facts == {"by": "alive"}


def test_attempts_are_bounded_and_the_job_says_why(ledger: Ledger, clock: Clock) -> None:
    """A worker that dies every time does not run for ever."""
    job = opened(ledger)
    for _ in range(BY_NAME[StepName.RECEIVE].max_crashes):
        claimed(ledger, job)
        clock.now += 31
        ledger.release_lost_leases(BY_NAME)
    found = ledger.job(job.id)
    assert found is not None
    assert (found.state, found.error) == (State.FAILED, "LeaseRanOut")
    assert found.remedy


@pytest.mark.parametrize(
    ("ends", "error"),
    [
        ("dies hangs", ""),
        ("dies hangs hangs", "DeadlinePassed"),
        ("hangs dies dies", ""),
        ("hangs dies dies dies", "LeaseRanOut"),
        ("dies dies dies hangs", "DeadlinePassed"),
        ("hangs dies retry hangs dies dies", ""),
    ],
)
def test_deaths_and_hangs_are_bounded_together_and_hangs_alone(
    ledger: Ledger, clock: Clock, ends: str, error: str
) -> None:
    """A death before it makes a hang no second one; a retry begins anew."""
    job = opened(ledger)
    for end in ends.split():
        if end == "retry":
            ledger.cancel(job.id)
            ledger.retry(job.id)
            continue
        deadline_s = BY_NAME[job.step].deadline_s
        claimed(ledger, job, lease_s=deadline_s if end == "hangs" else 30)
        clock.now += deadline_s if end == "hangs" else 31
        [job] = ledger.release_lost_leases(BY_NAME)
    assert job.state is (State.FAILED if error else State.QUEUED)
    if error:
        assert job.error == error
    times = ends.rpartition("retry")[2].split().count(end)
    assert f"({times} times)" in job.cause


def test_a_step_that_hangs_loses_its_lease_at_its_deadline_however_alive_its_worker(
    ledger: Ledger, clock: Clock
) -> None:
    """A heartbeat keeps no lease beyond the deadline; a job that hangs twice ends, and says so."""
    job = opened(ledger)
    deadline_s = BY_NAME[job.step].deadline_s
    for _ in range(2):
        held = claimed(ledger, job, lease_s=deadline_s)
        for _ in range(5):
            clock.now += deadline_s / 6
            assert ledger.extend(held, deadline_s)
            assert ledger.release_lost_leases(BY_NAME) == []
        clock.now += deadline_s / 6
        assert not ledger.extend(held, deadline_s)
        assert [lost.id for lost in ledger.release_lost_leases(BY_NAME)] == [job.id]
        assert ledger.finish(held, {}) is None
    found = ledger.job(job.id)
    assert found is not None
    assert (found.state, found.error) == (State.FAILED, "DeadlinePassed")
    assert "1800 s" in found.cause


@pytest.mark.parametrize("jump_s", [86400.0, -86400.0])
def test_a_clock_that_is_set_ends_no_lease_and_no_waiting(
    ledger: Ledger, clock: Clock, jump_s: float
) -> None:
    """Running steps keep running, waiting ones wait as long as they would have; both then end."""
    steady = Clock()
    terms = Terms(lease_s=7)
    sweeper = Sweeper(ledger, terms, lambda _: 99, lambda _: None, steady_s=steady)
    running = claimed(ledger, at_step(ledger, StepName.DEIDENTIFY, "running"), lease_s=7)
    waiting = claimed(ledger, at_step(ledger, StepName.RECEIVE, "waiting"), lease_s=7)
    ledger.wait(waiting, cause="c", remedy="r", error="e", delay_s=100, patience_s=1000)
    arrivals = Arrivals(ledger.database)
    arrivals.record("feed", Cursor(1), {"arriving": None})
    sweeper.once()
    clock.now += jump_s + 2
    steady.now += 2
    sweeper.once()
    assert ledger.extend(running, 7)
    assert ledger.due(STEPS) == 0
    [arriving] = arrivals.waiting()
    assert arriving.silent_s == pytest.approx(2)
    for one in (clock, steady):
        one.now += 99
    assert ledger.due(STEPS) == 1
    sweeper.once()
    lost = ledger.job(running.id)
    assert lost is not None and lost.state is State.QUEUED, "its worker is dead, whatever the time"


@pytest.mark.parametrize("jump_s", [3600, -3600])
def test_what_comes_between_the_clock_and_the_sweep_is_not_moved(
    ledger: Ledger, clock: Clock, jump_s: float
) -> None:
    """Its times are those of the new clock: an hour more, and it would wait for an hour."""
    steady = Clock()
    sweeper = Sweeper(ledger, Terms(lease_s=7), lambda _: 99, lambda _: None, steady_s=steady)
    sweeper.once()
    clock.now += jump_s + 0.5
    waiting = claimed(ledger, at_step(ledger, StepName.RECEIVE, "waiting"), lease_s=7)
    ledger.wait(waiting, cause="c", remedy="r", error="e", delay_s=10, patience_s=1000)
    arrivals = Arrivals(ledger.database)
    arrivals.record("feed", Cursor(1), {"arriving": None})
    clock.now += 0.5
    steady.now += 1
    sweeper.once()
    [arriving] = arrivals.waiting()
    assert arriving.silent_s == pytest.approx(0.5)
    clock.now += 9
    assert ledger.due(STEPS) == 0
    clock.now += 1
    assert ledger.due(STEPS) == 1


def test_a_job_that_no_compute_worker_takes_waits_and_says_so(ledger: Ledger, clock: Clock) -> None:
    """Its message may be lost any number of times; only patience ends, or a worker begins."""
    job = at_step(ledger, StepName.INFER)
    for _ in range(20):
        held = claimed(ledger, job, lease_s=7)
        ledger.handed_over(held, BY_NAME[StepName.INFER].patience_s)
        [waiting] = ledger.waiting_in_compute()
        assert waiting.cause == "Waits for a compute worker"
        clock.now += 8
        [lost] = ledger.release_lost_leases(BY_NAME)
        assert (lost.state, lost.crashes) == (State.QUEUED, 0)
    held = claimed(ledger, job)
    ledger.handed_over(held, BY_NAME[StepName.INFER].patience_s)
    ledger.started(held, 3600)
    assert ledger.waiting_in_compute() == []
    clock.now += 31
    [crashed] = ledger.release_lost_leases(BY_NAME)
    assert crashed.crashes == 1


def test_a_heartbeat_that_fails_once_is_tried_again(database_url: str, clock: Clock) -> None:
    """One moment without a database ends no lease."""
    failed, extended = threading.Event(), threading.Event()

    class Flaky(Ledger):
        def extend(self, job: Job, lease_s: float, progress: float | None = None) -> bool:
            if not failed.is_set():
                failed.set()
                raise sa.exc.OperationalError("update", {}, Exception("gone"))
            kept = super().extend(job, lease_s, progress)
            extended.set()
            return kept

    ledger = Flaky(database_url, clock=clock)
    job = claimed(ledger, opened(ledger), lease_s=0.04)
    clock.now += 0.03
    with kept_alive(ledger, job, 0.04):
        assert extended.wait(10)
    clock.now += 0.03
    assert ledger.release_lost_leases(BY_NAME) == [], "it would have run out by now"
    ledger.database.close()


def test_what_a_step_noted_outlives_its_failure_and_its_worker(
    ledger: Ledger, clock: Clock
) -> None:
    """The next try begins where the last one got to; who lost the lease notes nothing."""
    job = claimed(ledger, opened(ledger))
    assert ledger.note(job, {"sent": 1})
    record_failure(ledger, job, PacsUnavailable("PACS does not answer"))
    assert not ledger.note(job, {"sent": 2})
    clock.now += 1
    again = claimed(ledger, job)
    assert again.facts == {"sent": 1}
    assert ledger.note(again, {"sent": 3})
    clock.now += 31
    ledger.release_lost_leases(BY_NAME)
    assert claimed(ledger, job).facts == {"sent": 3}
