"""Two who change one job at once: what one of them has noted, the other does not undo."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

from node.edges.ledger import Ledger
from node.jobs import Job, State, StepName
from node.pipeline import BY_NAME
from tests.ledger_case import Clock, claimed


def delivering(ledger: Ledger) -> Job:
    """A job whose results a worker is sending."""
    job = ledger.open_jobs("series", "study", ("a", "b"))
    while job is not None:
        held = claimed(ledger, job)
        if held.step is StepName.DELIVER:
            return held
        job = ledger.finish(held, {})
    raise AssertionError("no such step")


@contextmanager
def after_the_first_transaction(act: Callable[[], object]) -> Iterator[None]:
    """``act`` happens when the next transaction is over, before whatever comes after it."""
    acted: list[bool] = []

    def once(*_: Any) -> None:
        if not acted:
            acted.append(True)
            act()

    sa.event.listen(sa.pool.Pool, "checkin", once)
    try:
        yield
    finally:
        sa.event.remove(sa.pool.Pool, "checkin", once)
    assert acted


def test_a_sweep_that_ends_a_lease_keeps_what_was_noted_meanwhile(
    ledger: Ledger, clock: Clock
) -> None:
    """A worker that was too slow for its lease has sent something: its successor must know it."""
    job = delivering(ledger)
    clock.now += 31
    sent = {"delivery": {"archive": {"accepted": {"seg": ""}}}}
    with after_the_first_transaction(lambda: ledger.note(job, sent)):
        [released] = ledger.release_lost_leases(BY_NAME)
    found = ledger.job(job.id)
    assert found is not None
    assert (found.state, found.facts["delivery"]) == (State.QUEUED, sent["delivery"])
    assert released.facts == found.facts


def test_a_worker_that_takes_a_job_keeps_what_a_resumed_destination_changed(
    ledger: Ledger, clock: Clock
) -> None:
    """What waited for the destination is tried in the step that begins, not an hour later."""
    job = delivering(ledger)
    later = {"next_try_at": clock.now + 3600}
    ledger.pause("destination:archive")
    ledger.wait(job, cause="paused", remedy="", error="", delay_s=30,
                facts={"delivery": {"archive": later}})  # fmt: skip
    clock.now += 30
    with after_the_first_transaction(lambda: ledger.resume("destination:archive")):
        taken = claimed(ledger, job)
    found = ledger.job(job.id)
    assert found is not None
    assert taken.facts["delivery"]["archive"]["next_try_at"] is None
    assert found.facts == taken.facts
