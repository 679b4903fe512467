"""What was sent and not answered may have arrived: the ledger knows so before it is sent."""

from __future__ import annotations

from pathlib import Path

import pytest
from dicom_peers import ct_instance
from moody_pacs import MoodyPacs, Outbox, aborting
from pynetdicom import evt

from node.edges.dicomweb import DicomWebDestination, DicomWebPacs
from node.errors import PacsUnavailable
from node.jobs import State, StepName
from node.pipeline.outbound import outbound_record, taken_by
from tests.integration.test_delivery import once, reached
from tests.integration.test_dicomweb_edge import answering
from tests.ledger_case import claimed
from tests.orthanc_server import free_port


def may_hold(outbox: Outbox, name: str = "pacs") -> list[str]:
    return list(outbox.delivery(name).get("may_hold", []))


def test_what_was_cut_off_may_be_there_and_what_follows_it_is_not(tmp_path: Path) -> None:
    """The node does not know whether the archive has stored it; the next try settles that."""
    with MoodyPacs() as pacs:
        outbox = Outbox(tmp_path, {"pacs": reached(pacs.port)}, captures=3, seg=False)
        pacs.mood = once(aborting, outbox.captures[1])
        waiting = outbox.run()
        assert waiting.state is State.WAITING
        assert may_hold(outbox) == ["capture-0002"]
        known = taken_by(waiting)["pacs"]
        assert {one.sop_instance_uid for one in known} == set(outbox.captures[:2])
        assert outbox.run().state is State.CONFIRMED
        assert may_hold(outbox) == []


def test_what_a_full_or_absent_destination_was_not_sent_is_not_there(tmp_path: Path) -> None:
    """It never goes out when more instances come meanwhile."""
    with MoodyPacs() as pacs:
        to = {"pacs": reached(pacs.port), "down": reached(free_port(), "down")}
        outbox = Outbox(tmp_path, to, captures=3, seg=False)
        pacs.mood = lambda event, uid: 0xA700
        waiting = outbox.run()
    assert taken_by(waiting) == {}
    outbox.ledger.open_jobs("series", "study", ["one", "two"])
    ended = outbox.ledger.job(waiting.id)
    assert ended is not None and ended.state is State.SUPERSEDED


def test_what_a_job_was_sending_when_it_was_canceled_is_known(tmp_path: Path) -> None:
    """The archive takes it after the person has pressed the button."""
    with MoodyPacs() as pacs:
        outbox = Outbox(tmp_path, {"pacs": reached(pacs.port)}, captures=2)

        def cancel(event: evt.Event, uid: str) -> int:
            outbox.ledger.cancel(outbox.job.id)
            return 0x0000

        pacs.mood = once(cancel, outbox.SEG)
        canceled = outbox.run()
        assert canceled.state is State.CANCELED
        assert pacs.held == {outbox.SEG}
    assert [one.sop_instance_uid for one in taken_by(canceled)["pacs"]] == [outbox.SEG]
    outbox.ledger.open_jobs("series", "study", ["one", "two"])
    kept = outbox.ledger.job(canceled.id)
    assert kept is not None and kept.state is State.CANCELED


def test_a_part_of_a_segmentation_that_was_taken_is_known_when_the_rest_is_refused(
    tmp_path: Path,
) -> None:
    """Back to encode with what it has."""
    with MoodyPacs() as pacs:
        outbox = Outbox(tmp_path, {"pacs": reached(pacs.port)})
        [seg] = outbox.job.facts["results"]
        parts = {**seg, "sop_instance_uids": [outbox.SEG, "2.25.7001"]}
        outbox.vault.seal("S", outbound_record(outbox.job, "seg-0002"), ct_instance(1))
        held = claimed(outbox.ledger, outbox.job)
        told = {"cause": "c", "remedy": "r", "error": "e", "delay_s": 0.0}
        outbox.ledger.wait(held, **told, facts={"results": [parts]})
        pacs.mood = lambda event, uid: 0x0000 if uid == outbox.SEG else 0xC000
        again = outbox.run()
    assert again.step is StepName.ENCODE
    assert outbox.delivery("pacs")["fallback"].startswith("status 0xC000")
    assert [one.sop_instance_uid for one in taken_by(again)["pacs"]] == [outbox.SEG]


def test_a_web_service_that_does_not_answer_may_have_stored(tmp_path: Path) -> None:
    """One that cannot be reached has not."""
    for name in ("silent", "absent"):
        (tmp_path / name).mkdir()
    with answering(200) as (service, _):
        service.awake.clear()
        url = f"http://127.0.0.1:{service.server_address[1]}/rs"
        pacs = DicomWebPacs(DicomWebDestination("web", url, answer_timeout_s=0.5))
        silent = Outbox(tmp_path / "silent", {"web": pacs})
        assert [one.name for one in taken_by(silent.run())["web"]] == ["seg"]
        service.awake.set()
    absent = Outbox(tmp_path / "absent", {"web": pacs})
    assert taken_by(absent.run()) == {}


@pytest.mark.parametrize(("code", "sent"), [(503, False), (500, True), (504, True)])
def test_a_web_service_that_failed_on_the_way_may_have_stored(code: int, sent: bool) -> None:
    """One that says it is busy has not."""
    with answering(code) as (_, pacs), pytest.raises(PacsUnavailable) as caught:
        pacs.store([ct_instance(1)])
    assert caught.value.sent is sent


def test_what_a_web_service_does_not_name_may_be_stored() -> None:
    """202 and a body that tells nothing."""
    with answering(202, b"") as (_, pacs):
        (status,) = pacs.store([ct_instance(1)])
    assert status.unsure and not status.accepted
