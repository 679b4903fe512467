"""What a power cut, or a lost index, leaves of received instances comes back."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from dicom_peers import ct_instance

from node.edges.arrivals import Arrivals
from node.edges.feed import FEED
from node.edges.ledger import Ledger
from node.edges.orthanc import Orthanc
from node.edges.orthanc_config import DicomPeer
from node.edges.orthanc_storage import OrthancStorage, StorageState
from node.edges.watch import Watch
from node.errors import OrthancUnavailable
from node.jobs import State, StepName
from node.pipeline.receive import receive
from node.pipeline.run import Terms, run_next
from tests.conftest import NO_BRIDGE
from tests.orthanc_server import OrthancServer, free_port
from tests.running_node import (
    DEMO_CT,
    SOME_SLICES,
    RunningNode,
    Study,
    made_up_study,
    segmentations,
)


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[OrthancServer]:
    peer = DicomPeer("ct", "CT1", "127.0.0.1", free_port())
    with OrthancServer(tmp_path / "orthanc", peers=[peer]) as running:
        yield running


def sent(orthanc: OrthancServer, folder: Path, numbers: range) -> None:
    """C-STORE instances of one series; Orthanc has answered success to each of them."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number in numbers:
        files.append(folder / f"{number}.dcm")
        files[-1].write_bytes(ct_instance(number))
    subprocess.run(
        ["/usr/bin/storescu", "-aet", "CT1", "-aec", orthanc.ae_title, "127.0.0.1",
         str(orthanc.dicom_port), *map(str, files)],
        check=True, env={"PATH": os.environ["PATH"], "TCP_NODELAY": "1"},
    )  # fmt: skip


def storage_of(orthanc: OrthancServer) -> OrthancStorage:
    return OrthancStorage(Orthanc(orthanc.url, *orthanc.auth))


def lose_index(orthanc: OrthancServer) -> None:
    """The index's disk is gone; Orthanc makes another one."""
    orthanc.kill()
    shutil.rmtree(orthanc.index)
    orthanc.start()


def files_in(folder: Path) -> set[bytes]:
    return {path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_instances_that_an_older_index_does_not_know_come_back_and_are_processed_once(
    orthanc: OrthancServer, tmp_path: Path
) -> None:
    """Index as it was after 10 of 30; every instance is there again, under the same id, once."""
    sent(orthanc, tmp_path / "ct", range(10))
    orthanc.kill()
    older = tmp_path / "older"
    shutil.copytree(orthanc.index, older)
    orthanc.start()
    sent(orthanc, tmp_path / "ct", range(10, 30))
    acknowledged = set(orthanc.get("/instances").json())
    woken: list[str] = []
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    storage = storage_of(orthanc)
    watch = Watch(
        Orthanc(orthanc.url, *orthanc.auth), ledger, lambda job: woken.append(job.id),
        quiet_s=0, may_open=lambda: storage.has_looked,
    )  # fmt: skip
    storage.restore()
    watch.once()  # the cursor is at the end, and the series has its job
    before = files_in(orthanc.storage)

    orthanc.kill()
    shutil.rmtree(orthanc.index)
    shutil.copytree(older, orthanc.index)
    orthanc.start()
    assert len(orthanc.get("/instances").json()) == 10
    storage = storage_of(orthanc)
    watch.once()  # what is left of the series is no series
    assert len(storage.state().orphans) == 20
    assert Counter(one.outcome for one in storage.restore()) == {"imported": 20}

    assert set(orthanc.get("/instances").json()) == acknowledged
    assert storage.state().orphans == storage.state().unreadable == ()
    assert files_in(orthanc.storage) == before
    watch.once()
    watch.once()
    assert len(ledger.jobs()) == 1
    assert set(ledger.jobs()[0].instance_ids) == acknowledged


def test_a_lost_index_is_made_anew_from_the_files(orthanc: OrthancServer, tmp_path: Path) -> None:
    """The index's disk is gone: every instance is there, and the job of the series stays one."""
    sent(orthanc, tmp_path / "ct", range(12))
    acknowledged = set(orthanc.get("/instances").json())
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    watch = Watch(Orthanc(orthanc.url, *orthanc.auth), ledger, lambda job: None, quiet_s=0)
    watch.once()
    lose_index(orthanc)
    watch.once()
    assert len(storage_of(orthanc).restore()) == 12
    assert set(orthanc.get("/instances").json()) == acknowledged
    watch.once()
    assert len(ledger.jobs()) == 1


def test_an_instance_deleted_and_sent_again_survives_an_index_from_before_that(
    orthanc: OrthancServer, tmp_path: Path
) -> None:
    """The index has it, with its MD5, and means a file that was deleted: the new one is alone."""
    sent(orthanc, tmp_path / "ct", range(3))
    again = orthanc.upload(ct_instance(1))
    orthanc.kill()
    older = tmp_path / "older"
    shutil.copytree(orthanc.index, older)
    orthanc.start()
    storage_of(orthanc).delete_instance(again)
    sent(orthanc, tmp_path / "ct", range(1, 2))
    orthanc.kill()
    shutil.rmtree(orthanc.index)
    shutil.copytree(older, orthanc.index)
    orthanc.start()
    storage = storage_of(orthanc)
    assert [one.outcome for one in storage.restore()] == ["imported"]
    assert storage.state().orphans == ()
    kept = {
        orthanc.get(f"/instances/{one}/file").content for one in orthanc.get("/instances").json()
    }
    assert kept == files_in(orthanc.storage) and len(kept) == 3


def test_series_wait_until_an_orthanc_that_died_over_the_import_is_through_with_it(
    orthanc: OrthancServer, tmp_path: Path
) -> None:
    """What is there by then is a part. Files that can never be read hold up no others."""

    class Dying(OrthancStorage):
        def state(self) -> StorageState:
            found = super().state()
            orthanc.kill()
            return found

    sent(orthanc, tmp_path / "ct", range(4))
    orthanc.kill()
    shutil.rmtree(orthanc.index)
    orthanc.start()
    storage = Dying(Orthanc(orthanc.url, *orthanc.auth))
    with pytest.raises(OrthancUnavailable):
        storage.restore()
    assert not storage.has_looked
    orthanc.start()
    for number in range(3):
        broken = f"00000000-0000-4000-8000-00000000000{number}"
        (orthanc.storage / "segnode-orphans" / broken).mkdir()
    storage = storage_of(orthanc)
    outcomes = Counter(one.outcome for one in storage.restore())
    assert outcomes == {"imported": 4, "waiting": 3}
    assert storage.has_looked


def test_a_lost_index_undoes_no_decision(orthanc: OrthancServer, tmp_path: Path) -> None:
    """What was canceled stays so when its instances are back, until somebody sends them again."""
    sent(orthanc, tmp_path / "ct", range(6))
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    watch = Watch(Orthanc(orthanc.url, *orthanc.auth), ledger, lambda job: None, quiet_s=0)
    watch.once()
    [job] = ledger.jobs()
    ledger.cancel(job.id)
    lose_index(orthanc)
    watch.once()  # nothing is there
    assert len(storage_of(orthanc).restore()) == 6
    watch.once()
    watch.once()
    assert [one.state for one in ledger.jobs()] == [State.CANCELED]

    storage_of(orthanc).delete_instances(job.instance_ids)
    sent(orthanc, tmp_path / "ct", range(6))
    watch.once()
    assert [(one.id, one.state) for one in ledger.jobs()] == [(job.id, State.QUEUED)]


def test_a_job_that_missed_its_instances_goes_on_when_they_are_back(
    orthanc: OrthancServer, tmp_path: Path
) -> None:
    """Its step ran while the index was being made anew: that was nobody's decision."""
    sent(orthanc, tmp_path / "ct", range(6))
    reader = Orthanc(orthanc.url, *orthanc.auth)
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    watch = Watch(reader, ledger, lambda job: None, quiet_s=0)
    watch.once()
    [job] = ledger.jobs()
    lose_index(orthanc)
    io = {StepName.RECEIVE: partial(receive, instances=reader)}
    assert run_next("io", ledger=ledger, steps=io, wake=lambda job: None, terms=Terms())
    assert [one.state for one in ledger.jobs()] == [State.REJECTED]
    watch.once()
    # The six may be imported in the order in which they came: then the feed ends as it did.
    assert Arrivals(ledger.database).cursor(FEED).value == 0
    storage_of(orthanc).restore()
    watch.once()
    assert [(one.id, one.state) for one in ledger.jobs()] == [(job.id, State.QUEUED)]


def test_half_a_file_is_kept_apart_and_does_not_shut_out_the_whole_one(
    orthanc: OrthancServer, tmp_path: Path
) -> None:
    """It was never acknowledged: the sender sends it again, and that one is taken."""
    whole = ct_instance(1)
    orthanc.kill()
    folder = orthanc.storage / "0a" / "0b"
    folder.mkdir(parents=True)
    half = folder / "0a0b0c0d-0000-4000-8000-000000000001"
    half.write_bytes(whole[: len(whole) // 2])
    orthanc.start()
    storage = storage_of(orthanc)
    assert [one.outcome for one in storage.restore()] == ["unreadable"]
    assert orthanc.get("/instances").json() == []
    assert storage.state().unreadable == (half.name,)
    assert (orthanc.storage / "segnode-unreadable" / half.name).read_bytes() == whole[
        : len(whole) // 2
    ]
    sent(orthanc, tmp_path / "ct", range(1, 2))
    assert len(orthanc.get("/instances").json()) == 1


def test_an_instance_without_its_file_is_named_and_can_be_sent_again(
    orthanc: OrthancServer, tmp_path: Path
) -> None:
    """Orthanc would answer success to it and keep nothing, for the index has it."""
    sent(orthanc, tmp_path / "ct", range(3))
    gone = orthanc.get("/instances").json()[0]
    uuid = orthanc.get(f"/instances/{gone}/attachments/dicom/info").json()["Uuid"]
    orthanc.kill()
    (orthanc.storage / uuid[:2] / uuid[2:4] / uuid).unlink()
    orthanc.start()
    storage = storage_of(orthanc)
    assert storage.state().fileless == (gone,)
    storage.delete_instance(gone)
    until = time.monotonic() + 30
    while storage.state().fileless:  # Orthanc tells its plugins a moment later
        assert time.monotonic() < until
        time.sleep(0.05)
    sent(orthanc, tmp_path / "ct", range(3))
    assert len(orthanc.get(f"/instances/{gone}/file").content) > 1000


def test_a_disk_that_is_not_mounted_loses_nothing(orthanc: OrthancServer, tmp_path: Path) -> None:
    """Its files are not gone: nothing is taken out of the index for them."""
    sent(orthanc, tmp_path / "ct", range(3))
    orthanc.stop()
    elsewhere = orthanc.storage.rename(tmp_path / "unmounted")
    orthanc.storage.mkdir()
    orthanc.start()
    assert storage_of(orthanc).state().fileless == ()
    orthanc.stop()
    orthanc.storage.rmdir()
    elsewhere.rename(orthanc.storage)
    orthanc.start()
    for instance in orthanc.get("/instances").json():
        assert len(orthanc.get(f"/instances/{instance}/file").content) > 1000


def test_a_start_after_an_orderly_stop_moves_nothing(
    orthanc: OrthancServer, tmp_path: Path
) -> None:
    """Files and index agree, also when the index's last changes are still in its journal."""
    sent(orthanc, tmp_path / "ct", range(5))
    for end in (orthanc.stop, orthanc.kill):
        end()
        orthanc.start()
        state = storage_of(orthanc).state()
        assert state.orphans == state.unreadable == state.fileless == ()
    assert len(orthanc.get("/instances").json()) == 5


def test_a_node_whose_index_is_lost_in_mid_work_sends_the_result_back_to_the_sender_once(
    tmp_path: Path,
) -> None:
    """The node ends while a series arrives, and the index is the one before it came."""
    ports = RunningNode.free_ports()
    peer = DicomPeer("segnode", "SEGNODE", "127.0.0.1", ports["dicom"], may_query=True)
    study = made_up_study(tmp_path / "ct", DEMO_CT[SOME_SLICES])
    with (
        OrthancServer(
            tmp_path / "pacs", ae_title="HOSPITAL", peers=[peer], bridge=NO_BRIDGE
        ) as pacs,
        RunningNode(tmp_path / "node", pacs, ports, quiet_s=5) as node,
    ):
        node.receive(study)
        ledger = Ledger(f"sqlite:///{node.var / 'ledger.sqlite'}")
        until = time.monotonic() + 60
        while not Arrivals(ledger.database).waiting():
            assert time.monotonic() < until
            time.sleep(0.1)
        node.segnode("down")
        shutil.rmtree(node.var / "orthanc" / "index")
        node.segnode("up")
        assert node.wait_for(study)["state"] == "confirmed"
        assert len(segmentations(pacs, study)) == 1
        assert len(node.jobs_of(study)) == 1
        assert len(node.orthanc("/instances").json()) == len(study.files)
        _is_whole_again_after_a_file_was_lost(node, study)
        assert len(segmentations(pacs, study)) == 1
        assert len(node.jobs_of(study)) == 1


def _is_whole_again_after_a_file_was_lost(node: RunningNode, study: Study) -> None:
    """A disk has lost it while nothing ran; the node makes room for it, and it is sent again."""
    lost = node.orthanc("/instances").json()[0]
    uuid = node.orthanc(f"/instances/{lost}/attachments/dicom/info").json()["Uuid"]
    node.segnode("down")
    (node.var / "orthanc" / "storage" / uuid[:2] / uuid[2:4] / uuid).unlink()
    node.segnode("up")
    until = time.monotonic() + 60
    while lost in node.orthanc("/instances").json():
        assert time.monotonic() < until
        time.sleep(0.1)
    said = node.segnode("doctor", check=False)
    assert "1 received instance of series" in " ".join(said.split())
    node.receive(study)
    assert len(node.orthanc(f"/instances/{lost}/file").content) > 1000
