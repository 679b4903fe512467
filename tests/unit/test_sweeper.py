"""The sweeper, where the ledger does not answer at the wrong moment."""

from __future__ import annotations

import threading
from pathlib import Path

import sqlalchemy as sa

from node.edges.ledger import Ledger
from node.edges.ledger_tables import JOBS
from node.edges.sweeper import Sweeper
from node.errors import LedgerUnavailable
from node.jobs import State, StepName
from node.pipeline import BY_NAME
from node.pipeline.run import Terms
from tests.ledger_case import Clock, at_step, claimed


def test_a_clock_that_is_set_while_the_ledger_is_away_is_followed_later(tmp_path: Path) -> None:
    """The sweep that could not follow is not the last one that knows of it."""
    clock, steady, stop = Clock(), Clock(), threading.Event()
    asked: list[float] = []

    class Away(Ledger):
        def follow_clock(self, jump_s: float, lease_s: float, since_s: float) -> None:
            asked.append(jump_s)
            if len(asked) == 1:
                raise LedgerUnavailable("The ledger's database does not answer")
            super().follow_clock(jump_s, lease_s, since_s)
            stop.set()

    ledger = Away(f"sqlite:///{tmp_path / 'ledger.sqlite'}", clock=clock)
    sweeper = Sweeper(ledger, Terms(lease_s=7), lambda _: 99, lambda _: None, steady_s=steady)
    running = claimed(ledger, at_step(ledger, StepName.DEIDENTIFY), lease_s=7)
    sweeper.once()
    clock.now += 86_400
    sweeping = threading.Thread(target=sweeper.run, args=(stop, 0.01))
    sweeping.start()
    followed = stop.wait(10)
    stop.set()
    sweeping.join()
    assert followed
    assert asked == [86_400, 86_400]
    assert ledger.extend(running, 7), "its lease has followed"
    ledger.database.close()


def test_a_job_of_another_version_keeps_no_other_from_its_release(
    ledger: Ledger, clock: Clock
) -> None:
    """Its step is one that nobody here knows: it waits for who does, and the others go on."""
    unknown = claimed(ledger, at_step(ledger, StepName.DEIDENTIFY, "unknown"))
    known = claimed(ledger, at_step(ledger, StepName.RECEIVE, "known"))
    with ledger.database.transaction() as tx:
        tx.execute(sa.update(JOBS).where(JOBS.c.id == unknown.id).values(step="of tomorrow"))
    clock.now += 31
    released = ledger.release_lost_leases(BY_NAME)
    assert [(job.id, job.state) for job in released] == [(known.id, State.QUEUED)]
