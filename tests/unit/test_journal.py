"""The journal: what happened is told in order, and whatever is done to it afterwards shows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from node.edges.journal import Journal, entries_of, lines_of, verdict_of
from node.edges.ledger import Ledger
from node.edges.ledger_tables import JOURNAL, JOURNAL_HEADS
from node.errors import NotPossible
from node.jobs import Event, Job, StepName
from tests.ledger_case import LUNGS, claimed


@pytest.fixture
def ledger(database_url: str) -> Iterator[Ledger]:
    made = Ledger(database_url, who="worker")
    yield made
    made.database.close()


@pytest.fixture
def journal(ledger: Ledger) -> Journal:
    return Journal(ledger.database)


def confirmed(ledger: Ledger) -> Job:
    """A job that went all the way, with one result."""
    job = ledger.open_jobs("series", "study", ("a",))
    for step in StepName:
        assert job is not None and job.step is step
        held = claimed(ledger, job)
        if step is StepName.ROUTE:
            [job] = ledger.fork(held, [LUNGS])
        else:
            made = {"results": [{"sop_instance_uids": ["2.25.7"]}]}
            job = ledger.finish(held, made if step is StepName.ENCODE else {})
    assert job is not None
    return job


def test_it_tells_every_state_who_what_and_with_which_model(
    ledger: Ledger, journal: Journal
) -> None:
    """From the first entry to the last; a person's deed stands in the person's name."""
    job = confirmed(ledger)
    with pytest.raises(NotPossible):
        ledger.cancel(job.id)
    entries = [one.entry for one in journal.entries("study")]
    assert [one["event"] for one in entries[:3]] == ["open", "claim", "step done"]
    assert entries[-1]["state"] == "confirmed"
    assert len(entries) == 1 + 2 * len(StepName)
    last = entries[-1]
    assert (last["model_digest"], last["rule_version"]) == ("digest-1", "v1")
    assert (last["results"], last["who"]) == (["2.25.7"], "worker")

    ledger.who = "person at the console"
    other = ledger.open_jobs("other", "study", ("b",))
    assert other is not None
    ledger.cancel(other.id)
    [*_, ended] = journal.entries("study")
    assert (ended.entry["who"], ended.entry["event"]) == ("person at the console", Event.CANCEL)
    assert journal.verify("study").problem == ""


def _changed(tx: sa.Connection) -> None:
    entry = tx.scalar(sa.select(JOURNAL.c.entry).where(JOURNAL.c.number == 4))
    changed = {**entry, "who": "nobody"}
    tx.execute(sa.update(JOURNAL).where(JOURNAL.c.number == 4).values(entry=changed))


def _removed(tx: sa.Connection) -> None:
    tx.execute(sa.delete(JOURNAL).where(JOURNAL.c.number == 4))


def _cut_off(tx: sa.Connection) -> None:
    tx.execute(sa.delete(JOURNAL).where(JOURNAL.c.number > 4))


def _swapped(tx: sa.Connection) -> None:
    for before, after in ((4, 100), (5, 4), (100, 5)):
        tx.execute(sa.update(JOURNAL).where(JOURNAL.c.number == before).values(number=after))


def _all_removed(tx: sa.Connection) -> None:
    tx.execute(sa.delete(JOURNAL))


def _headless(tx: sa.Connection) -> None:
    tx.execute(sa.update(JOURNAL_HEADS).values(hash="0" * 64))


@pytest.mark.parametrize(
    ("tamper", "says"),
    [
        (_changed, "Entry 4 was changed"),
        (_removed, "Entry 4 is missing or elsewhere"),
        (_cut_off, "Entries after number 4 are missing"),
        (_swapped, "Entry 4 is missing or elsewhere"),
        (_all_removed, "Entries after number 0 are missing"),
        (_headless, "are missing"),
    ],
)
def test_tampering_is_found(
    ledger: Ledger, journal: Journal, tamper: Callable[[sa.Connection], None], says: str
) -> None:
    """Change, removal, another order, a cut: each is found, and where."""
    confirmed(ledger)
    assert journal.verify("study").problem == ""
    with ledger.database.transaction() as tx:
        tamper(tx)
    assert says in journal.verify("study").problem


def test_an_export_is_verified_without_the_node(ledger: Ledger, journal: Journal) -> None:
    """JSON lines, read back by anybody: whole when whole, and not when a line is missing."""
    confirmed(ledger)
    lines = list(lines_of(journal.entries("study")))
    assert all(set(json.loads(line)) == {"entry", "hash"} for line in lines)
    known = journal.verify("study")
    assert verdict_of(entries_of(lines), (known.entries, known.head)) == known
    assert "missing" in verdict_of(entries_of(lines[:3] + lines[4:]), None).problem
    cut = verdict_of(entries_of(lines[:-1]), (known.entries, known.head))
    assert "missing" in cut.problem
    with pytest.raises(NotPossible, match="Line 2"):
        entries_of([lines[0], "no JSON"])


def test_a_change_that_is_not_made_is_not_told(ledger: Ledger, journal: Journal) -> None:
    """The entry stands in the transaction of the change: both or neither."""
    ledger.open_jobs("series", "study", ("a",))
    before = journal.entries("study")
    [job] = ledger.jobs()
    with pytest.raises(RuntimeError), ledger.moves("study") as moves:
        assert moves.happen(job, Event.CANCEL) is not None
        raise RuntimeError("the disk is full")
    assert journal.entries("study") == before
    assert ledger.jobs()[0].state == "queued"


def test_of_a_study_that_nobody_knows_there_is_nothing_to_verify(
    journal: Journal, tmp_path: Path
) -> None:
    """A typing error is not taken for a clean journal."""
    with pytest.raises(NotPossible):
        journal.verify("nowhere")
