"""An archive that was told to reject a result may hide it: nothing more is sent, nothing proven."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from dicom_peers import STUDY
from moody_pacs import MoodyPacs, Outbox, aborting, content
from pydicom.uid import KeyObjectSelectionDocumentStorage
from pynetdicom import evt

from node.edges.console_json import deliveries_shown
from node.jobs import Job, State, StepName
from node.reconcile import Reconciler
from tests.integration.test_delivery import always, once, reached
from tests.ledger_case import claimed
from tests.orthanc_server import free_port


def newer(job: Job, rejected: Sequence[str], *, taken: bool = True) -> Job:
    """A job of more instances, whose note about these objects went to ``pacs``."""
    note = {
        "kind": "rejection", "sop_class_uid": KeyObjectSelectionDocumentStorage,
        "series_instance_uid": "2.25.91", "sop_instance_uids": ["2.25.92"], "destination": "pacs",
    }  # fmt: skip
    facts = {
        "results": [note], "plan": {"pacs": {"rejection": 1}},
        "delivery": {"pacs": {"accepted": {"rejection": ""} if taken else {}}},
        "replaces": {"pacs": {"2.25.73": list(rejected)}},
    }  # fmt: skip
    return replace(job, id="newer", instance_ids=("one", "two"), facts=facts)


def test_what_an_archive_hides_because_it_was_told_to_is_not_sent_again(tmp_path: Path) -> None:
    """Its query lists nothing any more; before the note that is a loss, afterwards it is right."""
    with MoodyPacs() as pacs:
        outbox = Outbox(tmp_path, {"pacs": reached(pacs.port)})
        held = claimed(outbox.ledger, outbox.job)
        outbox.ledger.finish(held, outbox.steps[StepName.DELIVER](held).facts)
        pacs.held.clear()
        waiting = outbox.job
        outbox.others = (newer(waiting, [outbox.SEG], taken=False),)
        assert outbox.run(tries=2).state is State.WAITING
        outbox.others = (newer(waiting, [outbox.SEG]),)
        ended = outbox.run()
        assert (ended.state, ended.error) == (State.SUPERSEDED, "")
        assert "newer result" in ended.cause
        assert pacs.sent == {outbox.SEG: 1}
    assert [one for one in outbox.vault.names("S") if "outbound" in one] == []


def test_the_rest_of_a_result_that_is_rejected_already_is_not_sent(tmp_path: Path) -> None:
    """The note names what is not there yet, too; who took some and got no note gets the rest."""
    with MoodyPacs() as pacs, MoodyPacs() as other:
        to = {"pacs": reached(pacs.port), "other": reached(other.port, "other")}
        outbox = Outbox(tmp_path, to, captures=3)
        pacs.mood = once(aborting, outbox.captures[0])
        other.mood = once(aborting, outbox.captures[0])
        waiting = outbox.run()
        assert waiting.state is State.WAITING
        sent = dict(pacs.sent)
        outbox.others = (newer(waiting, [outbox.SEG, *outbox.captures]),)
        ended = outbox.run()
        assert ended.state is State.SUPERSEDED
        assert pacs.sent == sent
        assert other.held == {outbox.SEG, *outbox.captures}
    states = {one["destination"]: one["state"] for one in deliveries_shown(ended, 0.0)}
    assert states == {"pacs": "replaced", "other": "confirmed"}


def test_a_destination_that_refused_is_still_named(tmp_path: Path) -> None:
    """What one was told to reject is no success at another one."""
    with MoodyPacs() as pacs, MoodyPacs() as bad:
        to = {"pacs": reached(pacs.port), "bad": reached(bad.port, "bad")}
        outbox = Outbox(tmp_path, to, captures=1, seg=False)
        pacs.mood = always(0xA700, outbox.captures[0])
        bad.mood = always(0xC000, outbox.captures[0])
        waiting = outbox.run()
        assert outbox.delivery("bad")["state"] == "refused"
        outbox.others = (replace(newer(waiting, outbox.captures), state=State.CANCELED),)
        sent = dict(pacs.sent)
        failed = outbox.run()
        assert (failed.state, failed.error) == (State.FAILED, "NotDelivered")
        assert failed.cause.startswith("bad refused 1 of 1 objects")
        assert "pacs" not in failed.cause
        bad.mood = content
        assert outbox.ledger.retry(failed.id).step is StepName.DELIVER
        assert outbox.run().state is State.SUPERSEDED
        assert (bad.held, pacs.sent) == (set(outbox.captures), sent)


def test_who_refuses_the_segmentation_gets_no_pictures_beside_a_newer_result(
    tmp_path: Path,
) -> None:
    """The newer result's note was made before and does not name them."""
    with MoodyPacs() as pacs, MoodyPacs() as other:
        to = {"pacs": reached(pacs.port), "other": reached(other.port, "other")}
        outbox = Outbox(tmp_path, to)

        def late(event: evt.Event, uid: str) -> int:
            more = ("one", "two")
            outbox.others = (replace(outbox.job, id="newer", instance_ids=more, facts={}),)
            return 0xC000

        pacs.mood = late
        ended = outbox.run()
        assert ended.state is State.SUPERSEDED
        assert (other.held, pacs.held) == ({outbox.SEG}, set())
    states = {one["destination"]: one["state"] for one in deliveries_shown(ended, 0.0)}
    assert states == {"pacs": "replaced", "other": "confirmed"}


def test_what_an_archive_hides_because_it_was_told_to_is_no_disagreement(tmp_path: Path) -> None:
    """`segnode doctor` asks for a sample of what was proven."""
    with MoodyPacs() as pacs:
        to = {"pacs": reached(pacs.port)}
        outbox = Outbox(tmp_path, to)
        first = outbox.run()
        assert first.state is State.CONFIRMED
        database = outbox.ledger.database
        look = Reconciler(
            database, *(None,) * 6, "", to, lambda job: STUDY  # type: ignore[arg-type]
        ).results  # fmt: skip
        assert list(look()) == []
        pacs.held.clear()
        [said] = look()
        assert "no longer has 1 object" in said.found
        opened = outbox.ledger.open_jobs("series", "study", ["one", "two"])
        assert opened is not None
        held = claimed(outbox.ledger, opened)
        assert outbox.ledger.note(held, newer(first, [outbox.SEG]).facts)
        assert list(look()) == []


@pytest.mark.parametrize(("state", "gets"), [(State.QUEUED, False), (State.FAILED, True)])
def test_who_has_nothing_of_a_result_when_a_newer_one_comes_gets_only_that(
    tmp_path: Path, state: State, gets: bool
) -> None:
    """It was down all night, and the other one has the earlier result already."""
    later = free_port()
    with MoodyPacs() as up, MoodyPacs(port=later) as late:
        late.mood = always(0xA700, Outbox.SEG)
        to = {"up": reached(up.port, "up"), "late": reached(later, "late")}
        outbox = Outbox(tmp_path, to)
        assert outbox.run().state is State.WAITING
        more = replace(outbox.job, id="newer", instance_ids=("one", "two"), facts={}, state=state)
        outbox.others, late.mood = (more,), content
        ended = outbox.run()
        assert ended.state is (State.CONFIRMED if gets else State.SUPERSEDED)
        assert late.held == ({outbox.SEG} if gets else set())
        assert up.sent == {outbox.SEG: 1}
