"""Patience ends by trying in vain: a pause, a long queue or a node that is off uses up none."""

from __future__ import annotations

import pytest

from node.edges.ledger import Ledger
from node.errors import PacsUnavailable
from node.jobs import Job, State, StepName
from node.pipeline import BY_NAME
from node.pipeline.delivery import Delivery
from node.pipeline.run import record_failure
from tests.ledger_case import Clock, at_step, claimed, opened

DAY_S = 86_400.0
INFER = BY_NAME[StepName.INFER]


def as_it_is(ledger: Ledger, job: Job) -> Job:
    found = ledger.job(job.id)
    assert found is not None
    return found


def handed_over(ledger: Ledger, job: Job) -> Job:
    """The job, for which a message waits in the compute queue."""
    held = claimed(ledger, job, lease_s=7)
    assert ledger.handed_over(held, INFER.patience_s)
    return held


def test_a_node_that_was_off_for_a_week_tries_again_before_it_gives_up(
    ledger: Ledger, clock: Clock
) -> None:
    """Orthanc is slower to start than the node: the first try after the week fails, too."""
    job = opened(ledger)
    for _ in range(3):
        record_failure(ledger, claimed(ledger, job), PacsUnavailable("starting"))
        assert as_it_is(ledger, job).state is State.WAITING
        clock.now += 8 * DAY_S


def test_a_step_that_ran_when_the_power_went_was_not_too_slow(ledger: Ledger, clock: Clock) -> None:
    """Its worker died; that this is seen after the deadline makes nothing hang."""
    job = claimed(ledger, opened(ledger))
    clock.now += 8 * DAY_S
    [released] = ledger.release_lost_leases(BY_NAME)
    assert (released.state, released.error) == (State.QUEUED, "LeaseRanOut")
    record_failure(ledger, claimed(ledger, job), PacsUnavailable("starting"))
    assert as_it_is(ledger, job).state is State.WAITING


def test_a_job_whose_turn_comes_after_a_week_waits_for_a_compute_worker_anew(
    ledger: Ledger, clock: Clock
) -> None:
    """The GPU was away, or its queue paused: the jobs behind do not fail one after another."""
    job = at_step(ledger, StepName.INFER)
    clock.now += 8 * DAY_S
    held = handed_over(ledger, job)
    assert ledger.extend(held, 7)
    clock.now += 8
    [lost] = ledger.release_lost_leases(BY_NAME)
    assert lost.state is State.QUEUED

    held = handed_over(ledger, job)
    assert ledger.extend(held, 8 * DAY_S)
    clock.now += INFER.patience_s + 1
    [given_up] = ledger.release_lost_leases(BY_NAME)
    assert (given_up.state, given_up.error) == (State.FAILED, "NoComputeWorker")


def test_a_message_that_nobody_took_while_the_node_was_off_is_sent_again(
    ledger: Ledger, clock: Clock
) -> None:
    """Redis keeps nothing: no compute worker could have taken it."""
    job = at_step(ledger, StepName.INFER)
    for _ in range(2):
        handed_over(ledger, job)
        clock.now += 8 * DAY_S
        [lost] = ledger.release_lost_leases(BY_NAME)
        assert (lost.state, lost.crashes) == (State.QUEUED, 0)


def test_what_waits_for_a_compute_worker_is_not_given_up_while_the_queue_is_paused(
    ledger: Ledger, clock: Clock
) -> None:
    """A person has paused it because there is none; on resuming it has all its time."""
    job = at_step(ledger, StepName.INFER)
    held = handed_over(ledger, job)
    ledger.pause("queue:gpu")
    assert ledger.extend(held, 8 * DAY_S)
    clock.now += INFER.patience_s + 1
    assert [one.state for one in ledger.release_lost_leases(BY_NAME)] == [State.QUEUED]
    ledger.resume("queue:gpu")
    assert ledger.extend(handed_over(ledger, job), 8 * DAY_S)
    clock.now += INFER.patience_s - 1
    assert ledger.release_lost_leases(BY_NAME) == []


def tried_in_vain(delivery: Delivery, now: float, days: float) -> tuple[Delivery, float]:
    """The delivery after so many days in which each try came when it was due."""
    until = now + days * DAY_S
    while now < until and not delivery.given_up:
        delivery = delivery.wait(PacsUnavailable("does not answer"), now)
        now = delivery.next_try_at or now
    return delivery, now


@pytest.mark.parametrize("paused", [False, True])
def test_a_destination_is_given_up_after_a_week_of_tries(paused: bool) -> None:
    """Not after a week in which it was paused, or the node off."""
    delivery, now = tried_in_vain(Delivery(), 1_000_000.0, days=6)
    assert not delivery.given_up
    for _ in range(8):
        if paused:
            delivery = delivery.pause("archive", now)
        now += DAY_S
    delivery, now = tried_in_vain(delivery, now, days=0.9)
    assert not delivery.given_up
    delivery, _ = tried_in_vain(delivery, now, days=7.1 if paused else 1)
    assert delivery.given_up
