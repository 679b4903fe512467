"""What becomes of a job after a step: it goes on, waits, forks, goes back, or stops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from node.edges.ledger import Ledger
from node.errors import DeliveryRefused, NodeError, PacsUnavailable, Rejected, UnsuitableInput
from node.jobs import Done, Explained, Job, NotYet, Outcome, Reason, State, StepName, unsuitable
from node.pipeline import BY_NAME
from node.pipeline.run import Terms, record_failure, run_next
from tests.ledger_case import AIRWAYS, LUNGS, Clock, claim, claimed, opened, run_step


def _raises(error: NodeError) -> Callable[[Job], Outcome]:
    def step(_: Job) -> Outcome:
        raise error

    return step


def test_a_worker_runs_what_is_due_in_its_queue_and_wakes_the_next(ledger: Ledger) -> None:
    """A wake-up names a queue; the ledger says whose turn it is."""
    job = opened(ledger)
    woken: list[Job] = []
    steps = {StepName.RECEIVE: lambda job: Done({"sender": "PACS"})}
    assert run_next("io", ledger=ledger, steps=steps, wake=woken.append, terms=Terms())
    assert [(one.id, one.step) for one in woken] == [(job.id, StepName.ROUTE)]
    assert not run_next("cpu", ledger=ledger, steps=steps, wake=woken.append, terms=Terms())


def test_nothing_is_recorded_of_a_step_whose_job_a_person_stopped(ledger: Ledger) -> None:
    """The step ends as it likes; the job stays canceled, and nobody is woken."""
    job = opened(ledger)
    woken: list[Job] = []

    def step(job: Job) -> Done:
        ledger.cancel(job.id)
        return Done({"sent": True})

    run_step(ledger, job, step, woken.append)
    found = ledger.job(job.id)
    assert found is not None
    assert (found.state, dict(found.facts), woken) == (State.CANCELED, {}, [])


def test_a_system_that_is_away_for_a_night_fails_no_job_and_one_that_is_gone_for_good_does(
    ledger: Ledger, clock: Clock
) -> None:
    """Waiting is bounded by days, not by tries: Orthanc may restart, a PACS be down till Monday."""
    job = opened(ledger)
    away = _raises(PacsUnavailable("PACS does not answer"))
    began = clock.now
    while clock.now < began + 3 * 86400:
        run_step(ledger, job, away)
        waiting = ledger.job(job.id)
        assert waiting is not None and waiting.next_try_at is not None
        assert waiting.state is State.WAITING
        assert 0 < waiting.next_try_at - clock.now <= 900
        clock.now = waiting.next_try_at + 3600
    assert waiting.attempt > 50
    # The hours in which nobody came do not count; days in which it was asked do.
    for delay_s in (6 * 86400, 86400):
        ledger.wait(
            claimed(ledger, job), cause="PACS does not answer", remedy="", error="PacsUnavailable",
            delay_s=delay_s, patience_s=BY_NAME[job.step].patience_s,
        )  # fmt: skip
        clock.now += delay_s
    failed = ledger.job(job.id)
    assert failed is not None
    assert (failed.state, failed.cause) == (State.FAILED, "PACS does not answer")
    assert ledger.retry(job.id).state is State.QUEUED


def test_a_job_that_waits_has_a_time_and_is_not_claimed_before(
    ledger: Ledger, clock: Clock
) -> None:
    """Unavailable is retried after the back-off, with cause and remedy shown meanwhile."""
    job = claimed(ledger, opened(ledger))
    record_failure(ledger, job, PacsUnavailable("PACS does not answer"))
    waiting = ledger.job(job.id)
    assert waiting is not None
    assert waiting.state is State.WAITING
    assert waiting.next_try_at == clock.now + 1
    assert claim(ledger, job, 30) is None
    clock.now += 1
    assert claim(ledger, job, 30) is not None


def test_what_a_step_itself_waits_for_may_take_days(ledger: Ledger, clock: Clock) -> None:
    """A step that says itself when to go on is tried as often as it likes, at its time."""
    job = opened(ledger)
    pending = NotYet(PacsUnavailable("no report yet"), {"asked": 1}, delay_s=3600)
    for number in range(1, 30):
        run_step(ledger, job, lambda _: pending)
        waiting = ledger.job(job.id)
        assert waiting is not None
        assert (waiting.state, waiting.attempt) == (State.WAITING, number)
        assert waiting.next_try_at == clock.now + 3600
        clock.now += 3600
    assert waiting.facts == {"asked": 1}


def test_two_wishes_make_two_jobs_of_one_series(ledger: Ledger) -> None:
    """Route forks: the job takes the first wish and a twin is made for the second."""
    job = claimed(ledger, opened(ledger))
    ledger.finish(job, {"sender": "PACS"})
    job = claimed(ledger, ledger.jobs()[0])
    made = ledger.fork(job, [LUNGS, AIRWAYS])
    assert sorted(one.model for one in made) == ["ct_airways", "ct_lungs"]
    assert {one.step for one in made} == {StepName.DEIDENTIFY}
    assert len({one.key for one in made}) == 2
    assert all(one.facts["sender"] == "PACS" for one in made)


def test_a_redirected_job_goes_on_at_the_other_step_with_fresh_attempts(ledger: Ledger) -> None:
    """Delivery that needs something else sends the job back to encode, and keeps what it knows."""
    job = claimed(ledger, opened(ledger))
    following = ledger.redirect(job, StepName.ENCODE, {"plan": {"pacs": {"seg": 1}}}, "")
    assert following is not None
    assert (following.step, following.state, following.attempt) == (
        StepName.ENCODE, State.QUEUED, 0,
    )  # fmt: skip
    assert following.facts["plan"] == {"pacs": {"seg": 1}}
    assert claimed(ledger, following).attempt == 1
    assert ledger.redirect(job, StepName.ENCODE, {}, "") is None, "the lease is not ours any more"


def test_an_unsuitable_series_is_explained_where_the_rule_wants_it(ledger: Ledger) -> None:
    """The job goes on to encode with its reason, ends rejected with it, and may begin anew."""
    [job] = ledger.fork(claimed(ledger, opened(ledger)), [replace(LUNGS, explain=True)])
    done = ledger.finish(claimed(ledger, job), {"crosswalk": "record"})
    assert done is not None
    record_failure(ledger, claimed(ledger, done), UnsuitableInput("too thick", remedy="thinner"))
    told = ledger.job(job.id)
    assert told is not None and told.cause == "too thick"
    assert (told.step, told.state) == (StepName.ENCODE, State.QUEUED)
    reason = unsuitable(told)
    assert reason == Reason("UnsuitableInput", "too thick", "thinner")
    ledger.explained(claimed(ledger, told), Explained(reason, ("pacs",)))
    ended = ledger.job(job.id)
    assert ended is not None and ended.state is State.REJECTED
    assert (ended.error, ended.cause, ended.remedy) == ("UnsuitableInput", "too thick", "thinner")
    assert ended.facts["explained"] == ["pacs"] and unsuitable(ended) is None
    again = ledger.retry(job.id)
    assert again.step is StepName.DEIDENTIFY
    assert "explained" not in again.facts, "should it end otherwise, nobody was told why"


@pytest.mark.parametrize(
    ("explain", "error"), [(False, UnsuitableInput("x")), (True, DeliveryRefused("x"))]
)
def test_what_no_rule_wants_explained_stops_the_job(
    ledger: Ledger, explain: bool, error: Rejected
) -> None:
    """Without the rule's word, or where the series is not to blame, a job just stops."""
    [job] = ledger.fork(claimed(ledger, opened(ledger)), [replace(LUNGS, explain=explain)])
    done = ledger.finish(claimed(ledger, job), {"crosswalk": "record"})
    assert done is not None
    record_failure(ledger, claimed(ledger, done), error)
    ended = ledger.job(job.id)
    assert ended is not None
    assert (ended.state, ended.step) == (State.REJECTED, StepName.INFER)
