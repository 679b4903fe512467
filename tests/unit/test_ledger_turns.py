"""Whose turn it is: priorities, bounds, pauses, workers that ask at once."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from node.edges.ledger import Ledger
from node.jobs import Job, Priority, Step, StepName
from node.pipeline import BY_NAME, STEPS
from tests.ledger_case import LUNGS, Clock, at_step, claimed, opened


def claimed_next(ledger: Ledger, steps: Sequence[Step]) -> Job:
    job = ledger.claim_next(steps, 30)
    assert job is not None
    return job


def test_what_is_urgent_goes_first_and_nothing_waits_for_ever(ledger: Ledger, clock: Clock) -> None:
    """Urgent, routine, off-peak; but who has waited longer than a head start goes first."""
    mine = [BY_NAME[StepName.DEIDENTIFY]]
    for number, priority in enumerate(("off-peak", "routine", "urgent", "routine")):
        clock.now += 1
        job = ledger.open_jobs(f"series{number}", f"study{number}", ("a",))
        assert job is not None
        job = ledger.finish(claimed(ledger, job), {}) or job
        wish = replace(LUNGS, priority=Priority(priority))
        ledger.fork(claimed(ledger, job), [wish])
    order = [claimed_next(ledger, mine).series_id for _ in range(4)]
    assert order == ["series2", "series1", "series3", "series0"]
    assert ledger.claim_next(mine, 30) is None

    old = at_step(ledger, StepName.DEIDENTIFY, "old")
    clock.now += Priority.URGENT.head_start_s + 1
    late = at_step(ledger, StepName.DEIDENTIFY, "late", replace(LUNGS, priority=Priority.URGENT))
    assert [claimed_next(ledger, mine).id for _ in range(2)] == [old.id, late.id]


def test_no_more_than_so_many_jobs_are_handed_to_the_compute_zone(ledger: Ledger) -> None:
    """What waits in the ledger can still be overtaken by what is urgent; a message cannot."""
    for name in ("one", "two", "three"):
        at_step(ledger, StepName.INFER, name)
    mine = [BY_NAME[StepName.INFER]]
    first = ledger.claim_next(mine, 30, at_most=2)
    assert first is not None
    assert ledger.due(mine, at_most=2) == 1
    assert ledger.claim_next(mine, 30, at_most=2) is not None
    assert ledger.claim_next(mine, 30, at_most=2) is None
    assert (ledger.due(mine, at_most=2), ledger.due(mine)) == (0, 1)
    ledger.finish(first, {})
    assert ledger.claim_next(mine, 30, at_most=2) is not None


def test_a_paused_queue_starts_nothing_until_it_is_resumed(ledger: Ledger) -> None:
    """What runs goes on; the others are still there afterwards."""
    running = opened(ledger, "a")
    held = claimed(ledger, running)
    ledger.open_jobs("other", "study", ("b",))
    io = [step for step in STEPS if step.queue == "io"]
    ledger.pause("queue:io")
    assert (ledger.claim_next(io, 30), ledger.due(io)) == (None, 0)
    assert ledger.finish(held, {}) is not None
    assert ledger.claim_next([BY_NAME[StepName.DEIDENTIFY]], 30) is None
    ledger.resume("queue:io")
    assert ledger.due(io) == 2
    assert ledger.claim_next(io, 30) is not None


def test_what_waits_for_a_paused_destination_is_due_when_it_is_resumed(
    ledger: Ledger, clock: Clock
) -> None:
    """A person who resumes need not wait for the next try."""
    job = claimed(ledger, at_step(ledger, StepName.DELIVER))
    ledger.pause("destination:archive")
    assert ledger.paused() == {"archive"}
    later, now = {"next_try_at": clock.now + 3600}, {"since": None, "next_try_at": None}
    ledger.wait(job, cause="archive is paused", remedy="", error="", delay_s=3600,
                facts={"delivery": {"archive": later, "other": later}})  # fmt: skip
    assert ledger.due(STEPS) == 0
    ledger.resume("destination:archive")
    assert (ledger.paused(), ledger.due(STEPS)) == (frozenset(), 1)
    found = ledger.job(job.id)
    assert found is not None
    assert found.facts["delivery"] == {"archive": now, "other": later}


def test_of_two_workers_that_ask_at_once_each_gets_another_job(
    database_url: str, clock: Clock
) -> None:
    """Real threads on one database: every job once, none left."""
    ledgers = [Ledger(database_url, clock=clock) for _ in range(4)]
    for number in range(20):
        ledgers[0].open_jobs(f"series{number}", f"study{number % 3}", ("a",))

    def work(ledger: Ledger) -> list[str]:
        found = []
        while job := ledger.claim_next(STEPS, 30):
            found.append(job.id)
        return found

    with ThreadPoolExecutor(len(ledgers)) as threads:
        taken = [one for some in threads.map(work, ledgers) for one in some]
    # One that finds all its candidates taken gives up: the next wake-up brings another.
    taken += work(ledgers[0])
    assert len(taken) == len(set(taken)) == 20
