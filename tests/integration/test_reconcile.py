"""Each kind of disagreement between the node's parts is made for real, found, told and mended."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
import sqlalchemy as sa
from dicom_peers import ct_instance

from anonymizer.keys import Keyring
from anonymizer.vault import FolderRecords, Vault
from node import tables
from node.edges import orthanc_storage
from node.edges.arrivals import Arrivals, Cursor
from node.edges.artifacts import FolderArtifacts
from node.edges.celery_app import COMPUTE_QUEUE, INFER, celery_app
from node.edges.journal import Journal
from node.edges.ledger import Ledger
from node.edges.ledger_tables import ARRIVALS, JOBS
from node.edges.orthanc import Orthanc
from node.edges.orthanc_storage import OrthancStorage
from node.jobs import Job, State, StepName
from node.pipeline.outbound import outbound_record
from node.reconcile import Disagreement, Reconciler
from tests.orthanc_server import OrthancServer, free_port
from tests.running_node import DEMO_CT, SOME_SLICES, RunningNode, made_up_study

STUDY = "2.25.4711"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OrthancServer]:
    with OrthancServer(tmp_path_factory.mktemp("orthanc")) as running:
        for number in range(3):
            running.upload(ct_instance(number))
        yield running


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis of its own; its URL."""
    port = free_port()
    process = subprocess.Popen(
        ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""],
        cwd=tmp_path_factory.mktemp("redis"), stdout=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    yield f"redis://127.0.0.1:{port}/0"
    process.terminate()
    process.wait(30)


@dataclass
class Parts:
    """The parts of a node, none of its processes."""

    ledger: Ledger
    artifacts: FolderArtifacts
    vault: Vault
    orthanc: OrthancServer
    broker_url: str
    now: list[float]

    def reconciler(self) -> Reconciler:
        return Reconciler(
            database=self.ledger.database,
            storage=OrthancStorage(Orthanc(self.orthanc.url, *self.orthanc.auth)),
            artifacts=self.artifacts,
            vault=self.vault,
            vault_studies=self.vault.studies,
            broker=redis.Redis.from_url(self.broker_url),
            queues=("io", "cpu"),
            compute_queue=COMPUTE_QUEUE,
            destinations={},
            study_instance_uid=lambda job: "",
            pause=lambda seconds: None,
        )

    def found(self) -> list[Disagreement]:
        return list(self.reconciler().disagreements())

    def only(self) -> Disagreement:
        (one,) = self.found()
        return one

    def job(self, state: State, step: StepName, **values: Any) -> Job:
        """The job of the series in Orthanc, in ``state`` at ``step``."""
        (one,) = self.orthanc.get("/series?expand").json()
        Arrivals(self.ledger.database).record("orthanc", Cursor(1), {one["ID"]: None})
        made = self.ledger.open_jobs(one["ID"], "study", one["Instances"])
        assert made is not None
        if step in (StepName.INFER, StepName.ENCODE):
            self.artifacts.put(f"{made.id}/instances/000001.dcm", b"x")
        self.change(made, state=state, step=step, **values)
        return made

    def change(self, job: Job, **values: Any) -> None:
        with self.ledger.database.transaction() as tx:
            tx.execute(sa.update(JOBS).where(JOBS.c.id == job.id).values(**values))

    def column(self, job: Job, name: str) -> Any:
        with self.ledger.database.transaction() as tx:
            return tx.scalar(sa.select(JOBS.c[name]).where(JOBS.c.id == job.id))

    def waiting_series(self) -> list[str]:
        with self.ledger.database.transaction() as tx:
            return list(tx.scalars(sa.select(ARRIVALS.c.series_id).where(~ARRIVALS.c.quiet)))


@pytest.fixture
def parts(server: OrthancServer, broker: str, tmp_path: Path) -> Iterator[Parts]:
    redis.Redis.from_url(broker).flushall()
    now = [1_000_000.0]
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}", clock=lambda: now[0])
    vault = Vault(FolderRecords(tmp_path / "vault"), Keyring("k", {"k": os.urandom(32)}))
    yield Parts(ledger, FolderArtifacts(tmp_path / "a"), vault, server, broker, now)


def mended(one: Disagreement) -> None:
    assert one.repair is not None
    one.repair()


def test_parts_that_agree_are_left_alone(parts: Parts) -> None:
    """A confirmed job with its series, its picture and its crosswalk: nothing to say."""
    parts.vault.seal(STUDY, "crosswalk-1", b"x")
    facts = {"study": STUDY, "crosswalk": "crosswalk-1"}
    job = parts.job(State.CONFIRMED, StepName.CONFIRM, facts=facts)
    parts.artifacts.put(f"{job.id}/overlay.png", b"x")
    assert parts.found() == []


def test_a_received_series_that_never_arrived_is_noted(parts: Parts) -> None:
    """The watch makes its job then, as of any other."""
    one = parts.only()
    assert one.found == "1 received series never noted as arrived"
    mended(one)
    assert len(parts.waiting_series()) == 1
    assert parts.found() == []


def test_a_series_with_an_instance_that_no_job_has_seen_is_looked_at_again(parts: Parts) -> None:
    """It came while the feed could not be trusted, say."""
    job = parts.job(State.CONFIRMED, StepName.CONFIRM)
    parts.change(job, instance_ids=list(job.instance_ids[:-1]))
    one = parts.only()
    assert one.found == "1 series with instances that no job has seen"
    mended(one)
    assert parts.waiting_series() == [job.series_id]


@pytest.mark.parametrize("series_at_once", [1, 2, 3])
def test_every_series_is_looked_at_however_many_are_read_at_once(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, series_at_once: int
) -> None:
    """A month of a hospital does not fit into memory: Orthanc and ledger are read in parts."""
    monkeypatch.setattr(orthanc_storage, "_PAGE", series_at_once)
    with OrthancServer(tmp_path / "own") as own:
        for number in range(4):
            own.upload(ct_instance(number, series=f"2.25.{number}"))
        parts.orthanc = own
        known, unseen, *unknown = own.get("/series").json()
        arrivals = Arrivals(parts.ledger.database)
        whole = own.get(f"/series/{known}").json()["Instances"]
        for one, seen in ((known, whole), (unseen, ["1"])):
            arrivals.record("orthanc", Cursor(1), {one: None})
            assert parts.ledger.open_jobs(one, "study", seen)
        with parts.ledger.database.transaction() as tx:
            tx.execute(sa.update(JOBS).values(state=State.CONFIRMED))
        never, some = parts.found()
        assert never.found == "2 received series never noted as arrived"
        assert some.found == "1 series with instances that no job has seen"
        mended(never)
        mended(some)
        assert sorted(parts.waiting_series()) == sorted([unseen, *unknown])


def test_a_job_whose_instances_were_deleted_in_orthanc_is_named(parts: Parts) -> None:
    """Only a person can send them again."""
    job = parts.job(State.WAITING, StepName.RECEIVE)
    parts.change(job, instance_ids=[*job.instance_ids, "0" * 8])
    one = parts.only()
    assert one.repair is None
    assert f"job {job.id[:8]} (waiting) needs 1 instance" in one.found
    assert "Send the series again" in one.remedy


def test_a_job_of_an_unknown_step_is_named_and_hides_no_other(parts: Parts) -> None:
    """A newer version has written it; what else is wrong is still found."""
    job = parts.job(State.CONFIRMED, StepName.CONFIRM)
    parts.artifacts.put(f"{'0' * 32}/instances/000001.dcm", b"x")
    parts.change(job, step="translate")
    unknown, folder = parts.found()
    assert "step or state that nobody here knows" in unknown.found
    assert unknown.repair is None
    assert folder.found == "1 folder of no job"


def test_a_job_that_runs_without_a_lease_is_swept(parts: Parts) -> None:
    """No sweep would ever have found it."""
    job = parts.job(State.RUNNING, StepName.DELIVER, lease_until=None)
    mended(parts.only())
    assert parts.column(job, "lease_until") is not None
    assert parts.column(job, "lease_until") < parts.now[0]


def test_a_lease_that_no_sweep_has_found_tells_that_the_watch_is_down(parts: Parts) -> None:
    """Minutes after it ran out; not while the sweep may still be on its way."""
    parts.job(State.RUNNING, StepName.DELIVER, lease_until=parts.now[0])
    parts.now[0] += 60
    assert parts.found() == []
    parts.now[0] += 600
    assert "watch does not run" in parts.only().remedy


def test_a_model_run_for_a_job_that_does_not_wait_for_it_is_taken_out(parts: Parts) -> None:
    """Its job was canceled; the message of another, which waits, stays."""
    job = parts.job(State.RUNNING, StepName.INFER, lease_until=parts.now[0] + 60)
    app = celery_app("test", parts.broker_url)
    for job_id in ("f" * 32, job.id):
        app.send_task(INFER, args=[job_id, 1, "ct_lungs", "digest"], queue=COMPUTE_QUEUE)
    one = parts.only()
    assert one.found.startswith("1 message in the compute queue")
    mended(one)
    assert redis.Redis.from_url(parts.broker_url).llen(COMPUTE_QUEUE) == 1
    assert parts.found() == []


def test_a_flood_of_wake_ups_is_dropped(parts: Parts) -> None:
    """The ledger knows what is due; the sweeper sends as many as are needed."""
    parts.job(State.CONFIRMED, StepName.CONFIRM)
    client = redis.Redis.from_url(parts.broker_url)
    client.rpush("cpu", *[b"{}"] * 1500)
    one = parts.only()
    assert "1500 wake-ups in the queue cpu for 0 open jobs" in one.found
    mended(one)
    assert client.llen("cpu") == 0


def test_a_folder_of_no_job_is_deleted(parts: Parts) -> None:
    """And a job's own folder is not."""
    job = parts.job(State.QUEUED, StepName.INFER)
    parts.artifacts.put(f"{'0' * 32}/instances/000001.dcm", b"x")
    one = parts.only()
    assert one.found == "1 folder of no job"
    mended(one)
    assert parts.artifacts.folders() == [job.id]


def test_a_job_whose_working_data_is_gone_is_named(parts: Parts) -> None:
    """Its step makes it again from Orthanc's copy."""
    job = parts.job(State.QUEUED, StepName.INFER)
    parts.artifacts.delete(f"{job.id}/instances")
    one = parts.only()
    assert f"job {job.id[:8]} are gone" in one.found
    assert "made again" in one.remedy


def test_an_outbound_object_that_nobody_delivers_is_deleted(parts: Parts) -> None:
    """Of a job that is unknown or over; an open job's stays, and so does every crosswalk."""
    parts.vault.seal(STUDY, "crosswalk-1", b"x")
    facts = {"study": STUDY, "crosswalk": "crosswalk-1"}
    job = parts.job(State.WAITING, StepName.DELIVER, facts=facts)
    parts.vault.seal(STUDY, outbound_record(job, "seg"), b"x")
    parts.vault.seal(STUDY, f"outbound-{'0' * 32}-seg", b"x")
    one = parts.only()
    assert one.found.startswith("1 outbound object of jobs that deliver nothing")
    mended(one)
    assert parts.vault.names(STUDY) == ["crosswalk-1", outbound_record(job, "seg")]
    parts.change(job, state=State.CONFIRMED)
    mended(parts.only())
    assert parts.vault.names(STUDY) == ["crosswalk-1"]


def test_a_crosswalk_that_is_gone_is_named_before_its_results_come(parts: Parts) -> None:
    """The job would end in quarantine; the vault's backup may have it."""
    facts = {"study": STUDY, "crosswalk": "crosswalk-1"}
    job = parts.job(State.QUEUED, StepName.INFER, facts=facts)
    one = parts.only()
    assert f"the crosswalk of job {job.id[:8]} is not in the vault" in one.found
    assert "backup" in one.remedy


def test_an_instance_without_its_file_leaves_the_index(parts: Parts, tmp_path: Path) -> None:
    """So that it can be sent again: Orthanc believes that it has it."""
    with OrthancServer(tmp_path / "own") as own:
        instance_id = own.upload(ct_instance(1))
        uuid = own.get(f"/instances/{instance_id}/attachments/dicom/info").json()["Uuid"]
        own.kill()
        (own.storage / uuid[:2] / uuid[2:4] / uuid).unlink()
        another = ("1" if uuid[0] == "0" else "0") + uuid[1:]
        (own.storage / uuid[:2] / uuid[2:4] / another).write_bytes(ct_instance(2))
        own.start()
        parts.orthanc = own
        parts.job(State.CONFIRMED, StepName.CONFIRM)
        orphan, gone = parts.found()
        assert orphan.found == "1 received file not in its index"
        assert gone.found == "1 instance in its index without a file"
        mended(gone)
        mended(orphan)
        assert instance_id not in own.get("/instances").json()
        assert len(own.get("/instances").json()) == 1


@pytest.mark.parametrize("has_job", [True, False])
def test_a_lost_instance_is_named_until_it_is_sent_again_and_is_not_taken_out_twice(
    parts: Parts, tmp_path: Path, has_job: bool
) -> None:
    """Its sender was told that it is kept: a person has to hear which series to send again."""
    with OrthancServer(tmp_path / "own") as own:
        instance_id, _ = (own.upload(ct_instance(number)) for number in range(2))
        uuid = own.get(f"/instances/{instance_id}/attachments/dicom/info").json()["Uuid"]
        own.kill()
        (own.storage / uuid[:2] / uuid[2:4] / uuid).unlink()
        own.start()
        parts.orthanc = own
        (series,) = own.get("/series?expand").json()
        if has_job:
            parts.job(State.FAILED, StepName.DELIVER)
            with parts.ledger.database.transaction() as tx:
                tx.execute(sa.update(JOBS).values(study_id=series["ParentStudy"]))
        else:  # it is still arriving
            Arrivals(parts.ledger.database).record("orthanc", Cursor(1), {series["ID"]: None})
        gone = parts.only()
        mended(gone)
        for _ in range(2):  # it is said every time
            lost = parts.only()
            assert lost.found.startswith(f"1 received instance of series {series['ID']} lost")
            assert series["ParentStudy"] in lost.remedy
            assert lost.grave and lost.repair is None
        journal = Journal(parts.ledger.database)
        entry = journal.entries(series["ParentStudy"])[-1].entry
        assert entry["event"] == "received instances lost"
        assert entry["series"] == series["ID"]
        assert not journal.verify(series["ParentStudy"]).problem
        assert tables.journal(journal.entries(series["ParentStudy"])).row_count

        assert own.upload(ct_instance(0)) == instance_id
        mended(gone)
        assert own.get(f"/instances/{instance_id}/file").content == ct_instance(0)
        assert parts.found() == []


def test_a_part_that_does_not_answer_hides_no_other(parts: Parts) -> None:
    """The broker is down, and the folder of no job is still found."""
    parts.job(State.CONFIRMED, StepName.CONFIRM)
    parts.broker_url = f"redis://127.0.0.1:{free_port()}/0"
    parts.artifacts.put(f"{'0' * 32}/instances/000001.dcm", b"x")
    said = [one.found for one in parts.found()]
    assert any("the broker does not answer" in one for one in said)
    assert "1 folder of no job" in said


def test_the_doctor_tells_what_a_pacs_no_longer_has_and_repairs_what_can_be(
    node: RunningNode, pacs: OrthancServer, tmp_path: Path
) -> None:
    """On a whole node: a result deleted in the PACS is named, a folder of no job is deleted."""
    study = made_up_study(tmp_path / "ct", DEMO_CT[SOME_SLICES])
    node.receive(study)
    job = node.wait_for(study)
    assert job["state"] == "confirmed"
    assert "no longer has" not in node.segnode("doctor", check=False)
    query = {"StudyInstanceUID": study.study_instance_uid, "Modality": "SEG"}
    for found in pacs.post("/tools/find", json={"Level": "Series", "Query": query}).json():
        httpx.delete(f"{pacs.url}/series/{found}", auth=pacs.auth).raise_for_status()
    nobodys = node.var / "artifacts" / ("0" * 32)
    nobodys.mkdir()

    said = " ".join(node.segnode("doctor", check=False).split())
    assert f"hospital no longer has 1 object of job {job['id'][:8]}" in said
    assert "1 folder of no job" in said
    assert nobodys.exists()
    node.segnode("doctor", "--repair", check=False)
    assert not nobodys.exists()
