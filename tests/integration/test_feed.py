"""The changes feed and the quiet timer against a real Orthanc, and senders who pause."""

from __future__ import annotations

import dataclasses
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from dicom_peers import ct_instance
from pydicom import Dataset, dcmread
from pydicom.uid import generate_uid
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.events import Event
from pynetdicom.sop_class import CTImageStorage

from node.edges.arrivals import Arrivals
from node.edges.feed import FEED, Feed
from node.edges.ledger import Ledger
from node.edges.orthanc import Orthanc
from node.edges.orthanc_config import DicomPeer
from node.edges.watch import Watch
from node.jobs import Job, State
from tests.orthanc_server import OrthancServer, free_port
from tests.running_node import DEMO_CT, SOME_SLICES, RunningNode, made_up_study, segmentations

QUIET_S = 1.0
PAUSE_S = 2 * QUIET_S


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OrthancServer]:
    peer = DicomPeer("ct", "CT1", "127.0.0.1", free_port())
    with OrthancServer(tmp_path_factory.mktemp("orthanc"), peers=[peer]) as running:
        yield running


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")


def series_of(count: int) -> list[Dataset]:
    """A new series."""
    study, series = generate_uid(), generate_uid()
    made = []
    for number in range(1, count + 1):
        instance = dcmread(BytesIO(ct_instance(number)))
        instance.StudyInstanceUID, instance.SeriesInstanceUID = study, series
        instance.SOPInstanceUID = generate_uid()
        instance.file_meta.MediaStorageSOPInstanceUID = instance.SOPInstanceUID
        made.append(instance)
    return made


def put(server: OrthancServer, instances: Sequence[Dataset]) -> str:
    """Upload; Orthanc's id of the series."""
    for instance in instances:
        stream = BytesIO()
        instance.save_as(stream, enforce_file_format=True)
        answer = server.post("/instances", content=stream.getvalue()).json()
    return str(answer["ParentSeries"])


def _without_delay(event: Event) -> None:
    connection = event.assoc.dul.socket
    if connection is not None and connection.socket is not None:
        connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


@contextmanager
def association(port: int, aet: str = "CT1", called: str = "ORTHANC") -> Iterator[Association]:
    """An association of a modality."""
    entity = AE(ae_title=aet)
    entity.add_requested_context(CTImageStorage)
    handlers = [(evt.EVT_CONN_OPEN, _without_delay)]
    opened = entity.associate("127.0.0.1", port, ae_title=called, evt_handlers=handlers)
    assert opened.is_established
    try:
        yield opened
    finally:
        opened.release()


def send(association: Association, instances: Sequence[Dataset]) -> None:
    for instance in instances:
        assert association.send_c_store(instance).Status == 0x0000
        # pynetdicom's own thread may otherwise still be about to take the next answer for itself.
        time.sleep(0.005)


class Watched:
    """The watch in a thread of its own, as in its process."""

    def __init__(self, server: OrthancServer, ledger: Ledger) -> None:
        self.orthanc = Orthanc(server.url, *server.auth)
        self.woken: list[Job] = []
        self._watch = Watch(
            self.orthanc, ledger, self.woken.append, quiet_s=QUIET_S, max_quiet_s=30
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._watch.run, args=(self._stop, time.sleep, QUIET_S / 5)
        )

    def __enter__(self) -> Watched:
        self._watch.once()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.orthanc.close()


def eventually(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.05)


def of_series(ledger: Ledger, instances: Sequence[Dataset], server: OrthancServer) -> list[Job]:
    """The jobs of a series, the newest first."""
    uid = str(instances[0].SeriesInstanceUID)
    [found] = server.post("/tools/lookup", content=uid).json()
    return [job for job in ledger.jobs() if job.series_id == found["ID"]]


def until_seen(orthanc: Orthanc, ledger: Ledger, series_id: str) -> None:
    """Return when the watch has read the feed to what is now its end, and opened what it opens."""
    arrivals, end = Arrivals(ledger.database), orthanc.changes(1_000_000).last
    eventually(lambda: arrivals.cursor(FEED).value >= end)
    eventually(lambda: series_id not in {one.series_id for one in arrivals.waiting()})


def test_the_bridge_knows_who_has_an_association_open(server: OrthancServer) -> None:
    """By address, as Orthanc notes it for what was sent; behind Orthanc's login."""
    orthanc = Orthanc(server.url, *server.auth)
    eventually(lambda: orthanc.open_associations() == {})
    with association(server.dicom_port) as one, association(server.dicom_port):
        assert orthanc.open_associations() == {"127.0.0.1": 2}
        [instance] = series_of(1)
        send(one, [instance])
        [found] = server.post("/tools/lookup", content=str(instance.SOPInstanceUID)).json()
        assert orthanc.metadata(found["ID"])["RemoteIP"] == "127.0.0.1"
    eventually(lambda: orthanc.open_associations() == {})
    assert httpx.get(f"{server.url}/segnode/associations").status_code == 401


def test_a_sender_who_pauses_within_an_association_makes_one_job(
    server: OrthancServer, ledger: Ledger
) -> None:
    """300 instances, and twice the quiet time in the middle: one job of 300, none superseded."""
    instances = series_of(300)
    with Watched(server, ledger) as watched:
        with association(server.dicom_port) as opened:
            send(opened, instances[:150])
            time.sleep(PAUSE_S)
            assert of_series(ledger, instances, server) == []
            send(opened, instances[150:])
        eventually(lambda: bool(of_series(ledger, instances, server)))
        [job] = of_series(ledger, instances, server)
        assert len(job.instance_ids) == 300
        until_seen(watched.orthanc, ledger, put(server, instances[:5]))  # sent again
        assert [one.state for one in of_series(ledger, instances, server)] == [State.QUEUED]


def test_two_parallel_associations_make_one_job_of_their_series(
    server: OrthancServer, ledger: Ledger
) -> None:
    """Each sends half of it, one pauses, the other is done before."""
    instances = series_of(60)
    with Watched(server, ledger):
        with association(server.dicom_port) as first:
            with association(server.dicom_port) as second:
                send(first, instances[:15])
                send(second, instances[30:])
            time.sleep(PAUSE_S)
            assert of_series(ledger, instances, server) == []
            send(first, instances[15:30])
        eventually(lambda: bool(of_series(ledger, instances, server)))
        assert [len(one.instance_ids) for one in of_series(ledger, instances, server)] == [60]


def test_an_association_that_has_moved_on_holds_nothing_up(
    server: OrthancServer, ledger: Ledger
) -> None:
    """A PACS that sends all day over one association: each series is looked at when it is quiet."""
    first, second = series_of(3), series_of(30)
    with Watched(server, ledger), association(server.dicom_port) as opened:
        send(opened, first)
        for instance in second:
            send(opened, [instance])
            time.sleep(QUIET_S / 10)
        assert len(of_series(ledger, first, server)) == 1
        assert of_series(ledger, second, server) == []


def fed(orthanc: Orthanc, ledger: Ledger) -> tuple[Feed, Arrivals]:
    arrivals = Arrivals(ledger.database)
    return Feed(orthanc, arrivals, longest_pause_s=0), arrivals


def test_an_index_made_anew_that_has_passed_the_cursor_is_noticed(
    tmp_path: Path, ledger: Ledger
) -> None:
    """The node slept meanwhile: the numbers look as if nothing had happened, the line does not."""
    with OrthancServer(tmp_path / "orthanc") as server:
        orthanc = Orthanc(server.url, *server.auth)
        feed, arrivals = fed(orthanc, ledger)
        put(server, series_of(2))
        feed.read()
        cursor = arrivals.cursor("orthanc")
        server.kill()
        for folder in (server.storage, server.index):
            shutil.rmtree(folder)
        server.start()
        lost_before = [put(server, series_of(1)) for _ in range(6)]
        assert orthanc.changes(0).last > cursor.value
        feed.read()
        assert arrivals.known(lost_before) == set(lost_before)


def test_a_deleted_last_line_is_no_other_index(server: OrthancServer, ledger: Ledger) -> None:
    """A person deletes what came last: nothing is looked at again, nothing is missed."""
    orthanc = Orthanc(server.url, *server.auth)
    feed, arrivals = fed(orthanc, ledger)
    kept, gone = put(server, series_of(2)), put(server, series_of(1))
    feed.read()
    for arrival in arrivals.waiting():
        ledger.open_jobs(arrival.series_id, "study", ["a"])
    httpx.delete(f"{server.url}/series/{gone}", auth=server.auth).raise_for_status()
    feed.read()
    assert arrivals.waiting() == []
    late = put(server, series_of(1))
    feed.read()
    assert [arrival.series_id for arrival in arrivals.waiting()] == [late]
    assert kept in arrivals.known([kept])


def test_at_its_start_the_node_finds_series_that_the_feed_does_not_show(
    server: OrthancServer, ledger: Ledger
) -> None:
    """Somebody has emptied the feed (any user of Orthanc may): what it holds is found anyway."""
    orthanc = Orthanc(server.url, *server.auth)
    hidden = put(server, series_of(1))
    httpx.delete(f"{server.url}/changes", auth=server.auth).raise_for_status()
    feed, arrivals = fed(orthanc, ledger)
    feed.read()
    assert arrivals.known([hidden]) == {hidden}


def test_a_pausing_sender_is_answered_with_one_result(
    node: RunningNode, pacs: OrthancServer, tmp_path: Path
) -> None:
    """Through the whole node: one job of all slices, one SEG, also when it is sent again."""
    study = made_up_study(tmp_path / "ct", DEMO_CT[SOME_SLICES])
    instances = [dcmread(file) for file in study.files]
    for instance in instances:
        instance.decompress(generate_instance_uid=False)
    with association(node.ports["dicom"], "HOSPITAL", "SEGNODE") as opened:
        send(opened, instances[:12])
        time.sleep(2 * PAUSE_S)
        assert node.jobs_of(study) == []
        send(opened, instances[12:])
    job = node.wait_for(study)
    assert (job["state"], job["facts"]["instances"]) == ("confirmed", len(instances))
    node.receive(study)
    orthanc = Orthanc(node.url, "segnode", node.secret("orthanc_password"))
    until_seen(orthanc, Ledger(f"sqlite:///{node.var / 'ledger.sqlite'}"), job["series_id"])
    assert len(node.jobs_of(study)) == 1
    assert len(segmentations(pacs, study)) == 1


def test_what_got_lost_on_the_way_is_fetched_from_the_pacs(
    node: RunningNode, pacs: OrthancServer, tmp_path: Path
) -> None:
    """The PACS holds 24 and has sent 15: the node counts, waits, asks for the rest, has it all."""
    study = made_up_study(tmp_path / "ct", DEMO_CT[SOME_SLICES])
    for file in study.files:
        pacs.upload(file)
    node.receive(dataclasses.replace(study, files=study.files[:15]))
    job = node.wait_for(study, lambda one: one["state"] == "confirmed")
    assert job["facts"]["instances"] == 24
    assert job["facts"]["completeness"]["says"] == "complete: PACS hospital says 24 of 24"
    waited = node.jobs_of(study)[-1]
    assert (waited["state"], waited["step"]) == ("superseded", "receive")
    assert waited["facts"]["asked_source"] == "asked for it: hospital sent 9"
    assert len(segmentations(pacs, study)) == 1
