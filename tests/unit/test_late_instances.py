"""What arrives again, or late: one job of the same instances, a newer one of more."""

from __future__ import annotations

from dataclasses import replace

import pytest

from node.edges.arrivals import Arrivals, Cursor
from node.edges.ledger import Ledger
from node.errors import Gone, NotPossible
from node.jobs import BY_HAND, Event, State, StepName
from node.pipeline import BY_NAME
from node.pipeline.run import record_failure
from tests.ledger_case import AIRWAYS, LUNGS, Clock, at_step, claimed, opened


def test_the_same_instances_make_one_job(ledger: Ledger) -> None:
    """A feed read again, or a study sent twice, makes no second job."""
    opened(ledger, "a", "b")
    assert ledger.open_jobs("series", "study", ("b", "a")) is None
    assert len(ledger.jobs()) == 1


@pytest.mark.parametrize("step", [StepName.RECEIVE, StepName.CONFIRM])
def test_a_part_of_what_a_job_has_or_will_have_made_gets_no_job(
    ledger: Ledger, step: StepName
) -> None:
    """Orthanc lost the rest with its index, or a deleted series is sent again bit by bit.

    Once the job has ended without a result, a part of it is better than nothing.
    """
    job = at_step(ledger, step)
    assert ledger.open_jobs("series", "study", ("a",)) is None
    if step is StepName.CONFIRM:
        ledger.finish(claimed(ledger, job), {})
        assert ledger.open_jobs("series", "study", ("a",)) is None
        assert len(ledger.jobs()) == 1
    else:
        ledger.cancel(job.id)
        assert ledger.open_jobs("series", "study", ("a",)) is not None


def test_late_instances_make_a_job_that_supersedes(ledger: Ledger) -> None:
    """The older job knows too little and stops; one that is confirmed stays what it is."""
    older = opened(ledger, "a")
    newer = opened(ledger, "a", "b")
    found = ledger.job(older.id)
    assert found is not None
    assert found.state is State.SUPERSEDED
    assert newer.state is State.QUEUED
    while newer.state is not State.CONFIRMED:
        newer = ledger.finish(claimed(ledger, newer), {}) or newer
    assert opened(ledger, "a", "b", "c").state is State.QUEUED
    kept = ledger.job(newer.id)
    assert kept is not None and kept.state is State.CONFIRMED


@pytest.mark.parametrize("end", [Event.REJECT, Event.FAULT, Event.CANCEL])
def test_a_series_sent_again_after_its_job_ended_without_a_result_begins_anew(
    ledger: Ledger, end: Event
) -> None:
    """A person who sends a series again wants to see something happen."""
    job = claimed(ledger, opened(ledger))
    if end is Event.CANCEL:
        ledger.cancel(job.id)
    else:
        ledger.end(job, end, cause="gap", remedy="send again", error="GeometryError")
    again = ledger.open_jobs("series", "study", ("b", "a"))
    assert again is not None and again.id == job.id
    assert (again.state, again.step, again.cause) == (State.QUEUED, StepName.RECEIVE, "")
    assert ledger.open_jobs("series", "study", ("b", "a")) is None, "it is on its way"


def test_of_a_series_that_was_gone_for_a_while_only_the_job_that_missed_it_begins_anew(
    ledger: Ledger,
) -> None:
    """Its instances were imported again; the other job was canceled by a person."""
    job = ledger.finish(claimed(ledger, opened(ledger)), {})
    assert job is not None
    missed, canceled = ledger.fork(claimed(ledger, job), [LUNGS, AIRWAYS])
    held = ledger.claim_next([BY_NAME[StepName.DEIDENTIFY]], 30)
    assert held is not None
    if held.id != missed.id:
        missed, canceled = canceled, missed
    record_failure(ledger, held, Gone("Orthanc no longer has the object"))
    ledger.cancel(canceled.id)
    again = ledger.open_jobs("series", "study", ("a", "b"))
    assert again is not None and again.id == missed.id
    states = {one.id: one.state for one in ledger.jobs()}
    assert states == {missed.id: State.QUEUED, canceled.id: State.CANCELED}


def test_what_is_being_sent_is_not_superseded(ledger: Ledger) -> None:
    """A PACS may hold half of it: it goes on to its proof, and the newer result follows."""
    older = claimed(ledger, at_step(ledger, StepName.DELIVER))
    newer = ledger.open_jobs("series", "study", ("a", "b", "c"))
    assert newer is not None
    assert ledger.finish(older, {}) is not None


@pytest.mark.parametrize("taken", [False, True])
def test_what_waits_for_a_pacs_that_has_taken_nothing_never_goes_out(
    ledger: Ledger, taken: bool
) -> None:
    """The PACS was down all night, and the end of the series came: it gets the newer result only.

    Once it has taken something, it gets the rest, and the newer result rejects it.
    """
    older = claimed(ledger, at_step(ledger, StepName.DELIVER))
    accepted = {"seg": ""} if taken else {}
    facts = {"plan": {"pacs": {"seg": 1}}, "delivery": {"pacs": {"accepted": accepted}}}
    waits = {"cause": "down", "remedy": "", "error": "PacsUnavailable", "delay_s": 60.0}
    ledger.wait(older, facts=facts, **waits)
    ledger.open_jobs("series", "study", ("a", "b", "c"))
    left = ledger.job(older.id)
    assert left is not None
    assert left.state is (State.WAITING if taken else State.SUPERSEDED)


def test_late_instances_bring_a_persons_wish_with_them(ledger: Ledger) -> None:
    """What a person asked for on fewer instances is made of all of them."""
    asked = ledger.request("series", "study", ("a",), replace(LUNGS, rule=BY_HAND))
    ledger.open_jobs("series", "study", ("a", "b"))
    states = {(job.instance_ids, job.model): job.state for job in ledger.jobs()}
    assert states == {
        (("a",), "ct_lungs"): State.SUPERSEDED,
        (("a", "b"), "ct_lungs"): State.QUEUED,
        (("a", "b"), ""): State.QUEUED,
    }
    assert asked.model == "ct_lungs"


def test_no_model_is_run_by_hand_on_a_series_that_is_still_arriving(
    ledger: Ledger, clock: Clock
) -> None:
    """The person is told to ask again; an instance later it would be worth nothing."""
    Arrivals(ledger.database).record("feed", Cursor(1), {"series": None})
    with pytest.raises(NotPossible, match="still arriving"):
        ledger.request("series", "study", ("a",), LUNGS)
    ledger.open_jobs("series", "study", ("a",))
    assert ledger.request("series", "study", ("a",), LUNGS).model == "ct_lungs"
