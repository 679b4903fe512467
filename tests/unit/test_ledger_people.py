"""What a person may do with a job: retry it, try now, ask for a model by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from node.edges.ledger import Ledger
from node.errors import NotPossible
from node.jobs import BY_HAND, Event, State, StepName
from tests.ledger_case import LUNGS, Clock, claimed, opened

#: Facts of encode, as the journal reads them.
RESULTS = [{"sop_instance_uids": ["2.25.1"]}]


def test_a_person_retries_what_stopped_and_cannot_retry_what_is_confirmed(ledger: Ledger) -> None:
    """Retry starts the same step with fresh attempts; a finished job refuses."""
    job = claimed(ledger, opened(ledger))
    ledger.end(job, Event.REJECT, cause="gap", remedy="send again", error="GeometryError")
    again = ledger.retry(job.id)
    assert (again.state, again.step, again.attempt) == (State.QUEUED, StepName.RECEIVE, 0)
    for _ in StepName:
        ledger.finish(claimed(ledger, again), {})
        again = ledger.job(job.id) or again
    assert again.state is State.CONFIRMED
    with pytest.raises(NotPossible, match="confirmed"):
        ledger.retry(job.id)


def test_retrying_sends_again_only_what_is_not_confirmed(ledger: Ledger) -> None:
    """Who lost what he accepted gets it once more; who proved it is left alone."""
    delivery = {
        "kept": {"state": "confirmed", "accepted": {"seg": ""}, "proof": "query"},
        "lost": {"state": "accepted", "accepted": {"seg": ""}, "given_up": True, "cause": "lost"},
        "partly": {"state": "refused", "accepted": {"seg": ""}, "failed": {"pdf": "0xC000"}},
    }
    plan = {name: {"seg": 1} for name in delivery}
    job = opened(ledger)
    for facts in [{}] * 6 + [{"results": RESULTS, "plan": plan, "delivery": delivery}]:
        job = ledger.finish(claimed(ledger, job), facts) or job
    assert job.step is StepName.CONFIRM
    ledger.end(claimed(ledger, job), Event.FAULT, cause="lost", remedy="r", error="NotDelivered")
    again = ledger.retry(job.id)
    assert (again.step, again.state) == (StepName.DELIVER, State.QUEUED)
    assert again.facts["results"] == RESULTS
    assert again.facts["delivery"] == {
        "kept": delivery["kept"], "lost": {"may_hold": ("seg",)},
        "partly": {"accepted": {"seg": ""}},
    }  # fmt: skip


def test_retrying_makes_a_new_plan_where_somebody_could_get_nothing(ledger: Ledger) -> None:
    """The sender was no peer and is one now: the job begins where its destinations are chosen."""
    delivery = {"kept": {"state": "confirmed", "proof": "query"}, "sender": {"state": "refused"}}
    job = opened(ledger)
    for facts in [{}] * 7 + [{"plan": {"kept": {"seg": 1}}, "delivery": delivery}]:
        if job.step is StepName.CONFIRM:
            ledger.note(claimed(ledger, job), facts)
        else:
            job = ledger.finish(claimed(ledger, job), facts) or job
    held = ledger.job(job.id)
    assert held is not None
    ledger.end(held, Event.FAULT, cause="c", remedy="r", error="NotDelivered")
    again = ledger.retry(job.id)
    assert again.step is StepName.ENCODE
    assert again.facts["delivery"] == {"kept": delivery["kept"]}


def test_a_waiting_job_that_is_tried_now_tries_every_destination_now(
    ledger: Ledger, clock: Clock
) -> None:
    """Trying now sends nothing twice: it only ends the waiting."""
    waiting = {"state": "waiting", "accepted": {"seg": ""}, "tries": 3, "next_try_at": 2e6}
    facts = {"plan": {"pacs": {"seg": 1}}, "delivery": {"pacs": waiting}}
    job = opened(ledger)
    for _ in range(6):
        job = ledger.finish(claimed(ledger, job), {}) or job
    ledger.wait(claimed(ledger, job), cause="c", remedy="r", error="e", delay_s=900, facts=facts)
    again = ledger.retry(job.id)
    assert (again.step, again.state) == (StepName.DELIVER, State.QUEUED)
    assert again.facts["delivery"] == {"pacs": {"accepted": {"seg": ""}, "tries": 3}}


def test_asking_for_a_model_by_hand_twice_makes_one_job_and_rules_still_run(ledger: Ledger) -> None:
    """The button in the console is safe to press again, and does not silence the rules."""
    by_hand = replace(LUNGS, rule=BY_HAND, rule_version=BY_HAND)
    first = ledger.request("series", "study", ("a",), by_hand)
    assert ledger.request("series", "study", ("a",), by_hand).id == first.id
    ruled = ledger.open_jobs("series", "study", ("a",))
    assert ruled is not None and ruled.id != first.id
    ledger.cancel(first.id)
    revived = ledger.request("series", "study", ("a",), by_hand)
    assert (revived.id, revived.state) == (first.id, State.QUEUED)
