"""Who gets what of a job's results: a destination that can get nothing keeps nobody from his."""

from __future__ import annotations

import pytest

from node.errors import DeliveryRefused
from node.jobs import Job
from node.kinds import ResultKind
from node.pipeline.delivery import DeliveryState, read_deliveries
from node.pipeline.outbound import Profile, Result, facts_of, outgoing, plan_for

SEG, CAPTURE, RTSTRUCT = ResultKind.SEG, ResultKind.CAPTURE, ResultKind.RTSTRUCT
PROFILES = {"archive": Profile((SEG, CAPTURE), capture_every=4), "contours": Profile((RTSTRUCT,))}


def job_for(*destinations: str, **facts: object) -> Job:
    return Job("job", "series", "study", ("one",), destinations=destinations, facts=facts)


@pytest.mark.parametrize(
    ("destination", "why"),
    [
        ("sender", "came over HTTP"),
        ("contours", "nothing of that is made"),
        ("renamed", "There is no peer renamed"),
    ],
)
def test_who_can_get_nothing_is_refused_and_the_others_are_served(
    destination: str, why: str
) -> None:
    """Its line says why and what to do; the plan is the others'."""
    job = job_for(destination, "archive")
    plan, nothing = plan_for(job, PROFILES, {}, (SEG, CAPTURE))
    assert plan == {"archive": {SEG: 1, CAPTURE: 4}}
    result = Result(SEG, SEG.sop_class_uid, "2.25.1", ("2.25.2",))
    facts = facts_of(job, plan, nothing, [result])
    deliveries = read_deliveries(job_for(destination, "archive", **facts))
    assert deliveries["archive"].state is DeliveryState.WAITING
    refused = deliveries[destination]
    assert refused.state is DeliveryState.REFUSED and refused.over
    assert why in refused.cause
    assert "retry" in refused.remedy


def test_a_job_whose_results_nobody_can_get_stops() -> None:
    """There is nothing to deliver, and the first reason is given."""
    with pytest.raises(DeliveryRefused, match="over HTTP"):
        plan_for(job_for("sender", "renamed"), PROFILES, {}, (SEG,))


def test_a_destination_that_refused_the_segmentation_gets_pictures_of_its_own_number() -> None:
    """And keeps what it has taken of the job so far, as everybody does when the plan changes."""
    known = {"archive": {"fallback": "status 0x0122"}, "other": {"state": "confirmed"}}
    job = job_for("archive", "other", delivery=known)
    profiles = {**PROFILES, "other": Profile((SEG,))}
    plan, nothing = plan_for(job, profiles, {}, (SEG, CAPTURE))
    assert plan == {"archive": {CAPTURE: 4}, "other": {SEG: 1}}
    assert facts_of(job, plan, nothing, [])["delivery"] == known


def test_notes_of_two_destinations_have_numbers_of_their_own() -> None:
    """Each gets its own and what everybody gets; the numbers tell files and records apart."""
    note, plan = ResultKind.REJECTION, {SEG: 1, ResultKind.REJECTION: 1}
    results = [
        Result(SEG, SEG.sop_class_uid, "2.25.1", ("2.25.2",)),
        Result(note, note.sop_class_uid, "2.25.3", ("2.25.4",), "archive", 1),
        Result(note, note.sop_class_uid, "2.25.5", ("2.25.6",), "other", 2),
    ]
    facts = facts_of(job_for("archive", "other"), {"archive": plan, "other": plan}, {}, results)
    job = job_for("archive", "other", **facts)
    named = {name: [one.name for one in outgoing(job, name)] for name in job.destinations}
    assert named == {"archive": ["seg", "rejection"], "other": ["seg", "rejection-0002"]}
    assert len({one.name for one in outgoing(job)}) == 3
