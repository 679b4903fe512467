"""Storage commitment (PS3.4 Annex J) of a PACS that answers when it likes, by a real Orthanc."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from moody_pacs import MoodyPacs, Outbox

from node.edges.orthanc import Orthanc
from node.edges.orthanc_config import DicomPeer
from node.jobs import State, StepName
from tests.conftest import NO_BRIDGE
from tests.integration.test_delivery import reached
from tests.orthanc_server import OrthancServer

HERE = "127.0.0.1"
DAY_S = 86_400


@pytest.fixture(scope="module")
def pacs() -> Iterator[MoodyPacs]:
    """A PACS that offers storage commitment and no query: nothing else can prove it."""
    with MoodyPacs(finds=False, commits=True) as peer:
        yield peer


@pytest.fixture(scope="module")
def orthanc(pacs: MoodyPacs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OrthancServer]:
    """The node's Orthanc, whose AE title the PACS reports to."""
    peer = DicomPeer("pacs", "HOSPITAL", HERE, pacs.port)
    folder = tmp_path_factory.mktemp("orthanc")
    with OrthancServer(folder, ae_title="SEGNODE", peers=[peer], bridge=NO_BRIDGE) as server:
        yield server


@pytest.fixture
def outbox(tmp_path: Path, pacs: MoodyPacs, orthanc: OrthancServer) -> Iterator[Outbox]:
    pacs.transactions.clear()
    pacs.sent.clear()
    with closing(Orthanc(orthanc.url, *orthanc.auth)) as client:
        yield Outbox(tmp_path, {"pacs": reached(pacs.port)}, captures=1, commitment=client)


def test_a_report_may_come_days_later_and_after_a_restart(
    outbox: Outbox, pacs: MoodyPacs, orthanc: OrthancServer
) -> None:
    """The transaction is the ledger's: no look counts, and Orthanc need not remember it.

    Nor does the time count in which the node itself was off.
    """
    waiting = outbox.run(tries=6)
    assert (waiting.state, waiting.step) == (State.WAITING, StepName.CONFIRM)
    assert "awaited" in waiting.cause
    assert len(pacs.transactions) == 1, "asked once, looked at often"
    outbox.clock.now += 8 * DAY_S
    orthanc.kill()
    assert "Orthanc did not answer" in outbox.run().cause
    orthanc.start()
    outbox.run()
    assert len(pacs.transactions) == 2, "a transaction that nobody knows is asked for again"
    outbox.clock.now += 2 * DAY_S
    pacs.report(HERE, orthanc.dicom_port, transaction=0)
    assert outbox.run().state is State.CONFIRMED
    assert outbox.delivery("pacs")["proof"] == "storage commitment"
    assert set(pacs.sent.values()) == {1}


def test_a_failure_is_asked_about_again_before_anything_is_sent_again(
    outbox: Outbox, pacs: MoodyPacs, orthanc: OrthancServer
) -> None:
    """Some PACS report before they have stored; one that means it gets what it does not keep."""
    lost = outbox.captures[0]
    outbox.run()
    pacs.report(HERE, orthanc.dicom_port, failed=[lost])
    doubted = outbox.run()
    assert "it reports that it does not keep 1 of 2 objects" in doubted.cause
    assert set(pacs.sent.values()) == {1}
    outbox.run()
    assert len(pacs.transactions) == 2, "asked again, and nothing was sent"
    pacs.report(HERE, orthanc.dicom_port, failed=[lost])
    outbox.run()
    assert pacs.sent == {outbox.SEG: 1, lost: 2}
    pacs.report(HERE, orthanc.dicom_port)
    assert outbox.run().state is State.CONFIRMED
    assert outbox.delivery("pacs")["proof"] == "storage commitment"


def test_a_pacs_that_never_keeps_it_is_refused_in_words(
    outbox: Outbox, pacs: MoodyPacs, orthanc: OrthancServer
) -> None:
    """Sent three times, reported missing three times: a person looks into its storage."""
    lost = outbox.captures[0]
    for _ in range(30):
        job = outbox.run()
        if job.state is State.FAILED:
            break
        pacs.report(HERE, orthanc.dicom_port, failed=[lost])
    assert job.state is State.FAILED
    assert "accepted the results 3 times, and it reports that it does not keep 1 of 2" in job.cause
    assert pacs.sent == {outbox.SEG: 1, lost: 3}
