"""Delivery with proof, to real peers that misbehave: the right state, nothing lost or doubled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from moody_pacs import MoodyPacs, Outbox, aborting, content, cutting
from pynetdicom import evt

from node.edges.console_json import deliveries_shown
from node.edges.dicomweb import DicomWebDestination, DicomWebPacs
from node.edges.pacs import DicomDestination, DicomPacs
from node.errors import LeaseLost
from node.jobs import State, StepName
from node.pipeline import BY_NAME
from tests.integration.test_dicomweb_edge import answering
from tests.ledger_case import claimed
from tests.orthanc_server import free_port


def reached(port: int, name: str = "pacs", **changes: Any) -> DicomPacs:
    """The node's own SCU."""
    changes = {"dimse_timeout_s": 60, **changes}
    return DicomPacs(DicomDestination(name, "HOSPITAL", "127.0.0.1", port, **changes))


def once(mood: Callable[..., int], at: str) -> Callable[..., int]:
    """A mood that strikes the first time that one instance comes."""
    struck = []

    def moody(event: evt.Event, uid: str) -> int:
        if uid == at and not struck:
            struck.append(uid)
            return mood(event, uid)
        return content(event, uid)

    return moody


def always(status: int, at: str) -> Callable[..., int]:
    """The same answer to one instance, whenever it comes."""
    return lambda event, uid: status if uid == at else 0x0000


@pytest.mark.parametrize("mood", [aborting, cutting, "hanging"])
def test_a_broken_association_costs_only_what_was_not_answered(
    tmp_path: Path, mood: Callable[..., int] | str
) -> None:
    """The job waits with the count so far; the next try sends the rest; each is held once."""
    with MoodyPacs() as pacs:
        outbox = Outbox(tmp_path, {"pacs": reached(pacs.port, dimse_timeout_s=1)}, captures=5)
        first, second, third, fourth, fifth = outbox.captures
        pacs.mood = once(pacs.hanging if mood == "hanging" else mood, third)  # type: ignore[arg-type]
        waiting = outbox.run()
        assert (waiting.state, waiting.step) == (State.WAITING, StepName.DELIVER)
        assert waiting.error == "PacsUnavailable"
        assert "pacs has taken 3 of 6 objects" in waiting.cause
        assert outbox.run().state is State.CONFIRMED
        assert pacs.held == {outbox.SEG, *outbox.captures}
        assert pacs.sent == {outbox.SEG: 1, first: 1, second: 1, third: 2, fourth: 1, fifth: 1}
    assert outbox.delivery("pacs")["proof"] == "query"
    assert [name for name in outbox.vault.names("S") if "outbound" in name] == []


def test_one_association_for_all_objects_of_a_kind(tmp_path: Path) -> None:
    """Not one for each picture."""
    with MoodyPacs() as pacs:
        outbox = Outbox(tmp_path, {"pacs": reached(pacs.port)}, captures=20, seg=False)
        assert outbox.run().state is State.CONFIRMED
        assert pacs.associations == 2, "one to send, one to ask"


def test_a_destination_that_is_down_delays_nobody(tmp_path: Path) -> None:
    """The other one is confirmed while it waits, and gets nothing twice when it comes back."""
    later = free_port()
    with MoodyPacs() as up:
        outbox = Outbox(tmp_path, {"down": reached(later, "down"), "up": reached(up.port, "up")})
        waiting = outbox.run(tries=3)
        assert (waiting.state, waiting.step) == (State.WAITING, StepName.DELIVER)
        assert "down" in waiting.cause and "up" not in waiting.cause
        lines = {line["destination"]: line for line in deliveries_shown(waiting, outbox.clock.now)}
        assert (lines["up"]["state"], lines["up"]["proof"]) == ("confirmed", "query")
        assert (lines["down"]["state"], lines["down"]["taken"]) == ("waiting", 0)
        assert lines["down"]["next_try_in_s"] == 4
        with MoodyPacs(port=later) as late:
            assert outbox.run().state is State.CONFIRMED
        assert late.held == {outbox.SEG}
        assert up.sent == {outbox.SEG: 1}


def test_a_destination_that_hangs_delays_nobody(tmp_path: Path) -> None:
    """What the other has proven is in the ledger while the worker still waits for this one."""
    with MoodyPacs() as well, MoodyPacs() as hung:
        hung.mood = hung.hanging
        outbox = Outbox(
            tmp_path,
            {"hung": reached(hung.port, "hung", dimse_timeout_s=3), "well": reached(well.port)},
        )
        seen = []

        def look(event: evt.Event, uid: str) -> int:
            for _ in range(200):
                seen.append(outbox.job.facts.get("delivery", {}).get("well", {}).get("state"))
                if seen[-1] == "confirmed":
                    break
                hung._waiting.wait(0.01)
            return hung.hanging(event, uid)

        hung.mood = look
        waiting = outbox.run()
    assert seen[-1] == "confirmed"
    assert "hung" in waiting.cause


def test_a_refusal_ends_the_job_only_after_the_others_have_proven(tmp_path: Path) -> None:
    """FAILED with cause and remedy; a retry sends what is missing, where it is missing."""
    with MoodyPacs() as good, MoodyPacs() as bad:
        outbox = Outbox(
            tmp_path,
            {"bad": reached(bad.port, "bad"), "good": reached(good.port, "good")},
            captures=3,
        )
        bad.mood = always(0xC000, outbox.captures[1])
        failed = outbox.run()
        assert (failed.state, failed.error) == (State.FAILED, "NotDelivered")
        assert "bad refused 1 of 4 objects, first the capture: status 0xC000" in failed.cause
        assert "good keeps the results" in failed.cause
        assert "segnode pacs check bad" in failed.remedy and "retry" in failed.remedy
        assert outbox.delivery("good")["state"] == "confirmed"
        assert outbox.delivery("bad")["state"] == "refused"
        bad.mood = content
        outbox.ledger.retry(failed.id)
        assert outbox.run().state is State.CONFIRMED
        assert set(good.sent.values()) == {1}
        assert bad.sent == {outbox.SEG: 1, **dict.fromkeys(outbox.captures, 1)} | {
            outbox.captures[1]: 2
        }


def test_a_refused_segmentation_becomes_pictures_and_the_other_destination_goes_on(
    tmp_path: Path,
) -> None:
    """Back to encode with the refusal in words; who took the SEG is confirmed meanwhile."""
    with MoodyPacs() as good, answering(415) as (_, web):
        outbox = Outbox(tmp_path, {"web": web, "good": reached(good.port, "good")})
        job = outbox.run()
        assert (job.step, job.state) == (StepName.ENCODE, State.QUEUED)
        assert outbox.delivery("web")["fallback"] == "HTTP 415, media type not supported"
        assert outbox.delivery("good")["state"] == "confirmed"


def test_a_worker_killed_before_it_went_back_to_encode_goes_back(tmp_path: Path) -> None:
    """The refusal is in the ledger, the plan is old: nothing is sent by it."""
    with MoodyPacs() as pacs:
        outbox = Outbox(tmp_path, {"pacs": reached(pacs.port)})
        held = claimed(outbox.ledger, outbox.job)
        outbox.ledger.note(held, {"delivery": {"pacs": {"fallback": "status 0x0122"}}})
        outbox.clock.now += 31
        outbox.ledger.release_lost_leases(BY_NAME)
        assert outbox.run().step is StepName.ENCODE
        assert pacs.sent == {}


def test_a_full_destination_is_left_alone_until_it_has_room(tmp_path: Path) -> None:
    """0xA700 ends the try at once; what it took before is not sent again."""
    with MoodyPacs() as pacs:
        outbox = Outbox(tmp_path, {"pacs": reached(pacs.port)}, captures=4)
        full = outbox.captures[1]
        pacs.mood = once(lambda event, uid: 0xA700, full)
        waiting = outbox.run()
        assert waiting.state is State.WAITING
        assert "taken 2 of 5 objects: status 0xA700, out of resources" in waiting.cause
        assert outbox.run().state is State.CONFIRMED
        assert pacs.sent[full] == 2 and sum(pacs.sent.values()) == 6


@pytest.mark.parametrize("status", [0x0111, 0xB000, 0xB123])
def test_a_warning_is_accepted_shown_and_still_to_be_proven(tmp_path: Path, status: int) -> None:
    """A duplicate is there already; coerced elements are for a person to know."""
    with MoodyPacs() as pacs:
        outbox = Outbox(tmp_path, {"pacs": reached(pacs.port)})
        pacs.mood = always(status, outbox.SEG)
        done = outbox.run()
        assert done.state is State.CONFIRMED
        [line] = deliveries_shown(done, outbox.clock.now)
        assert [f"0x{status:04X}" in said for said in line["warnings"]] == [True]


def test_a_processing_failure_that_does_not_pass_is_a_refusal_after_an_hour(tmp_path: Path) -> None:
    """0x0110 is what some PACS say to what they will never store."""
    with MoodyPacs() as pacs:
        outbox = Outbox(tmp_path, {"pacs": reached(pacs.port)}, captures=2, seg=False)
        pacs.mood = always(0x0110, outbox.captures[0])
        began = outbox.clock.now
        assert outbox.run(tries=5).state is State.WAITING
        failed = outbox.run(tries=20)
        assert (failed.state, failed.error) == (State.FAILED, "NotDelivered")
        assert "0x0110" in failed.cause
        assert pacs.sent[outbox.captures[0]] == 14
        # 1, 2, 4 … 512 seconds, then thrice 15 minutes: 62 minutes of the clock that is moved.
        assert outbox.clock.now - began == 1023 + 3 * 900
        assert pacs.sent[outbox.captures[1]] == 1


def test_a_destination_that_never_comes_back_is_given_up_after_a_week(tmp_path: Path) -> None:
    """For ever is not waited, but for as long as the node is off; a retry begins anew."""
    outbox = Outbox(tmp_path, {"pacs": reached(free_port())})
    assert outbox.run(tries=3).state is State.WAITING
    outbox.clock.now += 8 * 86_400
    waiting = outbox.run(tries=2)
    assert waiting.state is State.WAITING and waiting.next_try_at is not None
    outbox.clock.now = waiting.next_try_at
    tried = {**outbox.delivery("pacs"), "since": outbox.clock.now - 7.1 * 86_400}
    outbox.ledger.wait(
        claimed(outbox.ledger, waiting), cause="c", remedy="r", error="e", delay_s=0,
        facts={"delivery": {"pacs": tried}},
    )  # fmt: skip
    failed = outbox.run()
    assert failed.state is State.FAILED
    assert "given up after 7 days" in failed.cause
    again = outbox.ledger.retry(failed.id)
    assert (again.state, again.step) == (State.QUEUED, StepName.DELIVER)


def test_what_a_destination_has_lost_is_sent_again(tmp_path: Path) -> None:
    """It answered success and does not list the object: after minutes it gets it once more."""
    with MoodyPacs() as pacs:
        outbox = Outbox(tmp_path, {"pacs": reached(pacs.port)}, captures=1)
        pacs.mood = once(lambda event, uid: 0xB000, outbox.SEG)
        held = claimed(outbox.ledger, outbox.job)
        outbox.ledger.finish(held, outbox.steps[StepName.DELIVER](held).facts)
        pacs.held.discard(outbox.SEG)
        job = outbox.run(tries=7)
        assert (job.state, job.step) == (State.WAITING, StepName.CONFIRM)
        assert "its query finds 1 of 2 objects" in job.cause
        assert outbox.run(tries=2).state is State.CONFIRMED
        assert pacs.sent == {outbox.SEG: 2, outbox.captures[0]: 1}


def test_a_destination_that_can_prove_nothing_is_named(tmp_path: Path) -> None:
    """Accepted is not confirmed: the job fails with what the PACS would have to offer."""
    with MoodyPacs(finds=False) as pacs:
        outbox = Outbox(tmp_path, {"pacs": reached(pacs.port)})
        failed = outbox.run()
        assert failed.state is State.FAILED
        assert "accepted the results and can prove nothing" in failed.cause
        assert outbox.delivery("pacs")["state"] == "accepted"


def test_a_paused_destination_gets_nothing_until_it_is_resumed(tmp_path: Path) -> None:
    """No try is counted, and the others go on."""
    with MoodyPacs() as one, MoodyPacs() as other:
        outbox = Outbox(tmp_path, {"one": reached(one.port), "other": reached(other.port)})
        outbox.paused = frozenset({"one"})
        waiting = outbox.run(tries=3)
        assert waiting.state is State.WAITING and "one is paused by a person" in waiting.cause
        assert not one.sent and other.held
        outbox.paused = frozenset()
        assert outbox.run().state is State.CONFIRMED


def test_a_worker_that_has_lost_its_lease_stops_sending(tmp_path: Path) -> None:
    """Its successor has taken over; what it notes goes nowhere, and nothing fails by it."""
    with MoodyPacs() as pacs:
        outbox = Outbox(tmp_path, {"pacs": reached(pacs.port)}, captures=3)

        def stall(event: evt.Event, uid: str) -> int:
            outbox.clock.now += 31
            outbox.ledger.release_lost_leases(BY_NAME)
            return 0x0000

        pacs.mood = once(stall, outbox.SEG)
        assert outbox.run().state is State.CONFIRMED
        assert pacs.sent == {outbox.SEG: 2, **dict.fromkeys(outbox.captures, 1)}


@pytest.mark.parametrize("names", [["one"], ["one", "other"]])
def test_a_job_that_was_canceled_before_anything_was_sent_sends_nothing(
    tmp_path: Path, names: list[str]
) -> None:
    """The lease is looked at before each batch, also where destinations are sent to at once."""
    with MoodyPacs() as pacs:
        outbox = Outbox(tmp_path, {name: reached(pacs.port, name) for name in names})
        held = claimed(outbox.ledger, outbox.job)
        outbox.ledger.cancel(held.id)
        with pytest.raises(LeaseLost):
            outbox.steps[StepName.DELIVER](held)
        assert not pacs.sent


def test_a_peer_that_was_renamed_is_named(tmp_path: Path) -> None:
    """Not a defect of the node, and no reason to keep the other from its results."""
    with MoodyPacs() as pacs:
        outbox = Outbox(tmp_path, {"pacs": reached(pacs.port)})
        held = claimed(outbox.ledger, outbox.job)
        plan = {"old": {"seg": 1}, "pacs": {"seg": 1}}
        outbox.ledger.wait(held, cause="c", remedy="r", error="e", delay_s=0, facts={"plan": plan})
        failed = outbox.run()
        assert failed.state is State.FAILED
        assert "There is no peer old any more" in failed.cause
        assert outbox.delivery("pacs")["state"] == "confirmed"


def test_a_login_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A missing password file is a refusal with a remedy, not a defect."""
    where = DicomWebDestination("web", "http://127.0.0.1:9", "user", tmp_path / "missing")
    outbox = Outbox(tmp_path, {"web": DicomWebPacs(where)})
    failed = outbox.run()
    assert failed.state is State.FAILED
    assert "password_file" in failed.remedy
