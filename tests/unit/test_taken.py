"""What a destination has of a job stays known, whatever becomes of plan, job and delivery."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from node.edges.ledger import Ledger
from node.jobs import Event, Explained, Job, Reason, State, StepName
from node.kinds import ResultKind
from node.pipeline.delivery import Delivery, DeliveryState, read_deliveries, resumed
from node.pipeline.outbound import Result, facts_of, outgoing, taken_by
from node.pipeline.replaced import replaced_by
from tests.ledger_case import at_step, claimed

SEG, CAPTURE, NOTE = ResultKind.SEG, ResultKind.CAPTURE, ResultKind.REJECTION
PARTS = Result(SEG, SEG.sop_class_uid, "2.25.1", ("2.25.11", "2.25.12"))
NOTES = Result(NOTE, NOTE.sop_class_uid, "2.25.3", ("2.25.31",), "archive")


def pictures(every: int) -> Result:
    """One of every ``every`` of twelve slices; the slice makes the UID."""
    uids = tuple(f"2.25.2{index:02}" for index in range(0, 12, every))
    return Result(CAPTURE, CAPTURE.sop_class_uid, "2.25.2", uids)


def job_with(deliveries: dict[str, Any], plan: dict[str, Any], *results: Result) -> Job:
    facts = {
        "results": [asdict(one) for one in results], "plan": plan, "delivery": deliveries,
        "study": "S",
    }  # fmt: skip
    return Job(
        "job", "series", "study", ("a",), StepName.DELIVER, State.WAITING, model="ct_lungs",
        destinations=tuple(plan), facts=facts,
    )  # fmt: skip


def planned(job: Job, plan: Any, *results: Result) -> Job:
    """After ``encode`` has made the plan anew."""
    return replace(job, facts={**job.facts, **facts_of(job, plan, {}, results)})


def has(job: Job, destination: str = "archive") -> set[str]:
    return {one.sop_instance_uid for one in taken_by(job).get(destination, ())}


def test_objects_keep_their_acceptance_when_a_new_plan_numbers_them_anew() -> None:
    """Another destination wants more: the ninth slice's picture is the fifth now, not the third."""
    third = {"capture-0001": "", "capture-0003": "status 0xB000"}
    before = job_with({"archive": {"accepted": third}}, {"archive": {"capture": 1}}, pictures(4))
    now = planned(before, {"archive": {CAPTURE: 4}, "other": {CAPTURE: 2}}, pictures(2))
    assert has(before) == has(now) == {"2.25.200", "2.25.208"}
    accepted = read_deliveries(now)["archive"].accepted
    assert accepted == {"capture-0001": "", "capture-0005": "status 0xB000"}
    assert now.facts["left"] == []


def test_a_part_of_a_refused_segmentation_that_was_taken_stays_known() -> None:
    """Pictures go out instead; should the Segmentation be offered again, the part is sent again."""
    known = {"archive": {"accepted": {"seg": ""}, "fallback": "status 0xC000"}}
    before = job_with(known, {"archive": {"seg": 1}}, PARTS)
    instead = planned(before, {"archive": {CAPTURE: 1}}, pictures(1))
    assert has(instead) == {"2.25.11"}
    assert read_deliveries(instead)["archive"] == Delivery(fallback="status 0xC000")
    gone = planned(instead, {"other": {CAPTURE: 1}}, pictures(1))
    assert has(gone) == {"2.25.11"}
    again = planned(gone, {"archive": {SEG: 1}}, PARTS)
    assert read_deliveries(again)["archive"].may_hold == ("seg",)
    assert has(again) == {"2.25.11"} and again.facts["left"] == []


def test_who_has_all_gets_what_a_new_plan_adds() -> None:
    """A note for a destination that was confirmed goes out; what it has is not sent again."""
    known = {"archive": {"state": "confirmed", "accepted": {"seg": "", "seg-0002": ""}}}
    before = job_with(known, {"archive": {"seg": 1}}, PARTS)
    same = planned(before, {"archive": {SEG: 1}}, PARTS)
    assert read_deliveries(same)["archive"].state is DeliveryState.CONFIRMED
    more = planned(before, {"archive": {SEG: 1, NOTE: 1}}, PARTS, NOTES)
    waiting = read_deliveries(more)["archive"]
    assert (waiting.state, dict(waiting.accepted)) == ("waiting", known["archive"]["accepted"])


@pytest.mark.parametrize(
    ("state", "step", "delivery", "named"),
    [
        # It runs, and what it sends after this is replaced, too.
        (State.RUNNING, StepName.DELIVER, {"may_hold": ["capture-0001"]}, 12),
        (State.WAITING, StepName.DELIVER, {"accepted": {"capture-0001": ""}}, 12),
        # Nothing more goes out; what may have arrived counts.
        (State.WAITING, StepName.DELIVER, {"tries": 3}, 0),
        (State.WAITING, StepName.DELIVER, {"given_up": True, "may_hold": ["capture-0002"]}, 1),
        (State.CANCELED, StepName.DELIVER, {"may_hold": ["capture-0001", "capture-0002"]}, 2),
        (State.FAILED, StepName.DELIVER, {"accepted": {"capture-0007": ""}}, 1),
        (State.SUPERSEDED, StepName.ENCODE, {"accepted": {"capture-0007": ""}}, 1),
        (State.SUPERSEDED, StepName.DELIVER, {}, 0),
    ],
)
def test_a_newer_result_replaces_what_an_earlier_one_has_sent_and_will_send(
    state: State, step: StepName, delivery: dict[str, Any], named: int
) -> None:
    """Otherwise the old result would stand in the study beside the new one."""
    plan = {"archive": {"capture": 1}}
    earlier = job_with({"archive": delivery}, plan, pictures(1))
    earlier = replace(earlier, state=state, step=step)
    newer = replace(earlier, id="newer", instance_ids=("a", "b"), facts={})
    twin = replace(earlier, id="twin", rule="another")
    found = replaced_by(newer, [earlier, twin]).get("archive", ())
    assert len(found) == len({one.sop_instance_uid for one in found}) == named


def test_what_is_no_part_of_an_earlier_result_any_more_is_replaced_with_it() -> None:
    """The archive has it, whatever the job has made since."""
    earlier = job_with({"archive": {}}, {"archive": {"capture": 1}}, pictures(1))
    left = [asdict(replace(PARTS, destination="archive"))]
    ended = replace(earlier, state=State.FAILED, facts={**earlier.facts, "left": left})
    newer = replace(earlier, id="newer", instance_ids=("a", "b"), facts={})
    assert {one.kind for one in replaced_by(newer, [ended])["archive"]} == {SEG}


def test_a_retry_sends_the_rest_of_pictures_that_some_were_taken_of() -> None:
    """With the Segmentation, those that it has would be known to nobody."""
    known = {
        "state": "refused", "fallback": "status 0xC000", "accepted": {"capture-0001": ""},
        "failed": {"capture-0002": "status 0xC000"},
    }  # fmt: skip
    some = job_with({"archive": known}, {"archive": {"capture": 1}}, pictures(1))
    step, facts = resumed(some)
    assert step is StepName.DELIVER
    begun = Delivery(accepted={"capture-0001": ""}, fallback="status 0xC000")
    assert read_deliveries(replace(some, facts=facts)) == {"archive": begun}
    none = job_with({"archive": {**known, "accepted": {}}}, {"archive": {"capture": 1}})
    step, facts = resumed(none)
    assert step is StepName.ENCODE
    assert read_deliveries(replace(none, facts=facts)) == {"archive": Delivery()}


def test_a_retry_of_what_was_accepted_and_not_proven_still_knows_of_it() -> None:
    """It is sent again, and a newer result that comes first has to replace it."""
    known = {"state": "accepted", "given_up": True, "accepted": {"seg": "", "seg-0002": ""}}
    job = job_with({"archive": known}, {"archive": {"seg": 1}}, PARTS)
    _, facts = resumed(job)
    again = replace(job, facts=facts)
    assert read_deliveries(again)["archive"].accepted == {}
    assert has(again) == {"2.25.11", "2.25.12"}


def test_a_retry_from_an_earlier_step_tries_who_had_refused(tmp_path: Path) -> None:
    """A canceled job whose working data was freed does all anew, and sends it, too."""
    known = {
        "archive": {"state": "refused", "cause": "c"}, "other": {"given_up": True, "tries": 9},
        "kept": {"state": "confirmed", "proof": "query"}, "sender": {"state": "refused"},
    }  # fmt: skip
    plan = {name: {"seg": 1} for name in known if name != "sender"}
    job = replace(job_with(known, plan, PARTS), step=StepName.DEIDENTIFY)
    step, facts = resumed(job)
    assert step is StepName.DEIDENTIFY
    begun = read_deliveries(replace(job, facts=facts))
    assert begun == {
        "archive": Delivery(), "other": Delivery(),
        "kept": Delivery(DeliveryState.CONFIRMED, proof="query"),
    }  # fmt: skip


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    yield made
    made.database.close()


def at_deliver(ledger: Ledger, delivery: dict[str, Any]) -> Job:
    """A job that holds the lease of ``deliver``."""
    facts = job_with({"archive": delivery}, {"archive": {"seg": 1}}, PARTS).facts
    held = claimed(ledger, at_step(ledger, StepName.DELIVER))
    assert ledger.note(held, facts)
    return replace(held, facts=facts)


@pytest.mark.parametrize("may_hold", [True, False])
def test_what_may_have_arrived_is_not_superseded(ledger: Ledger, may_hold: bool) -> None:
    """The association was cut after the data went out: the job goes on, and is replaced."""
    job = at_deliver(ledger, {"may_hold": ["seg"]} if may_hold else {"failed": {"seg": "busy"}})
    ledger.wait(job, cause="c", remedy="r", error="PacsUnavailable", delay_s=60)
    ledger.open_jobs("series", "study", ("a", "b", "c"))
    found = ledger.job(job.id)
    assert found is not None
    assert found.state is (State.WAITING if may_hold else State.SUPERSEDED)


def test_a_new_beginning_knows_what_was_taken(ledger: Ledger) -> None:
    """The series came again after one of two parts had been refused."""
    job = at_deliver(ledger, {"accepted": {"seg": ""}})
    ledger.end(job, Event.FAULT, cause="c", remedy="r", error="NotDelivered")
    again = ledger.open_jobs("series", "study", ("a", "b"))
    assert again is not None and "delivery" not in again.facts
    assert has(again) == {"2.25.11"}


def test_the_page_that_said_why_there_was_no_result_stays_known(ledger: Ledger) -> None:
    """Also when the job begins anew and is routed."""
    job = at_deliver(ledger, {"accepted": {"seg": ""}})
    reason = Reason("UnsuitableInput", "too thick", "thinner")
    ledger.explained(job, Explained(reason, ("archive",)))
    ended = ledger.job(job.id)
    assert ended is not None and "plan" not in ended.facts
    assert has(ended) == {"2.25.11"}
    assert [one.kind for one in outgoing(job)] == [SEG, SEG]
