"""What a person is shown of many jobs: the filter counts and finds beyond one answer's limit."""

from __future__ import annotations

import pytest

from node.edges.console_json import GROUPS, group_counts, group_of, states_of
from node.edges.ledger import Ledger
from node.jobs import Event
from tests.ledger_case import claimed


def test_what_is_stuck_is_found_behind_any_number_of_newer_jobs(ledger: Ledger) -> None:
    """The database filters and counts; a group's number is that of its jobs."""
    for number, error in enumerate(("GeometryError", "NoMatchingModel", None, None, None)):
        job = ledger.open_jobs(f"series{number}", "study", ("a",))
        assert job is not None
        held = claimed(ledger, job)
        if error:
            ledger.end(held, Event.REJECT, cause="c", remedy="r", error=error)
    found = {name: ledger.jobs(1, None, *states_of([name])) for name in GROUPS}
    assert {name: [group_of(job) for job in jobs] for name, jobs in found.items()} == {
        name: [name] for name in GROUPS
    }
    assert group_counts(ledger.counts(), ledger.unwanted()) == {"stuck": 1, "running": 3, "done": 1}
    assert len(ledger.jobs(9, "study", *states_of(["rejected"]))) == 2
    assert len(ledger.jobs(9, "study", *states_of(["done", "stuck"]))) == 2
    assert ledger.jobs(9, "elsewhere", *states_of(["stuck"])) == []
    with pytest.raises(KeyError):
        states_of(["lost"])
