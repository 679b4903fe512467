"""Only what nothing needs any more is freed: working data, and series in a real Orthanc."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from dicom_peers import ct_instance

from anonymizer.keys import Keyring
from anonymizer.vault import FolderRecords, Vault
from node.edges.arrivals import Arrivals, Cursor
from node.edges.artifacts import FolderArtifacts
from node.edges.journal import Journal
from node.edges.ledger import Ledger
from node.edges.ledger_tables import ARRIVALS, JOBS
from node.edges.orthanc import Orthanc
from node.edges.orthanc_storage import OrthancStorage
from node.edges.retention import Keep, Retention
from node.jobs import Job, State, StepName
from node.pipeline.outbound import outbound_record
from tests.orthanc_server import OrthancServer

DAY_S = 86400.0
STUDY = "2.25.4711"
KEEP = Keep(confirmed_days=30, unwanted_days=7, stopped_days=14)
HELD = (
    State.QUEUED, State.RUNNING, State.WAITING, State.INCOMPLETE, State.QUARANTINED, State.FAILED,
)  # fmt: skip
UNWANTED = {"error": "NoMatchingModel"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OrthancServer]:
    with OrthancServer(tmp_path_factory.mktemp("orthanc")) as running:
        yield running


@dataclass
class Node:
    """A ledger, a vault and artifacts over a real Orthanc; time is the test's."""

    ledger: Ledger
    artifacts: FolderArtifacts
    vault: Vault
    orthanc: OrthancServer
    now: list[float]
    #: What happens while Retention looks at its next job.
    meanwhile: list[Callable[[], object]]

    def clock(self) -> float:
        if self.meanwhile:
            self.meanwhile.pop()()
        return self.now[0]

    def retention(self, keep: Keep = KEEP) -> Retention:
        return Retention(
            self.ledger.database, self.artifacts, self.vault,
            OrthancStorage(Orthanc(self.orthanc.url, *self.orthanc.auth)), keep,
        )  # fmt: skip

    def job(self, state: State, step: StepName = StepName.DELIVER, **values: Any) -> Job:
        """The job of the series in Orthanc, in ``state``, with working data of every kind."""
        series_id, instance_ids = self.series()
        Arrivals(self.ledger.database).record("orthanc", Cursor(1), {series_id: None})
        made = self.ledger.open_jobs(series_id, "study", instance_ids)
        assert made is not None
        self.change(made, state=state, step=step, facts={"study": STUDY}, **values)
        for name in ("instances/000001.dcm", "results/seg.dcm", "overlay.png"):
            self.artifacts.put(f"{made.id}/{name}", b"x")
        self.vault.seal(STUDY, outbound_record(made, "seg"), b"x")
        return self.read(made)

    def change(self, job: Job, **values: Any) -> None:
        with self.ledger.database.transaction() as tx:
            tx.execute(sa.update(JOBS).where(JOBS.c.id == job.id).values(**values))

    def read(self, job: Job) -> Job:
        found = self.ledger.job(job.id)
        assert found is not None
        return found

    def series(self) -> tuple[str, tuple[str, ...]]:
        (one,) = self.orthanc.get("/series?expand").json()
        return one["ID"], tuple(one["Instances"])

    def last_note(self) -> tuple[str, str]:
        """The last entry of the study's journal, which is whole."""
        journal = Journal(self.ledger.database)
        assert not journal.verify("study").problem
        last = journal.entries("study")[-1].entry
        assert last["who"] == "retention"
        return last["job"], last["event"]

    def left_of(self, job: Job) -> set[str]:
        return {name.split("/", 1)[1] for name in self.artifacts.names(f"{job.id}/")}

    def outbound(self) -> list[str]:
        return [name for name in self.vault.names(STUDY) if name.startswith("outbound-")]


@pytest.fixture
def node(server: OrthancServer, tmp_path: Path) -> Iterator[Node]:
    for number in range(3):
        server.upload(ct_instance(number))
    vault = Vault(FolderRecords(tmp_path / "vault"), Keyring("k", {"k": os.urandom(32)}))
    vault.seal(STUDY, "crosswalk-1", b"leads back")
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}", clock=lambda: made.clock())
    artifacts = FolderArtifacts(tmp_path / "artifacts")
    made = Node(ledger, artifacts, vault, server, now=[1_000_000.0], meanwhile=[])
    yield made
    OrthancStorage(Orthanc(server.url, *server.auth)).delete_instances(
        server.get("/instances").json()
    )


def test_a_confirmed_jobs_working_data_goes_and_its_picture_and_crosswalk_stay(node: Node) -> None:
    """The picture is for people, the crosswalk leads later objects home."""
    job = node.job(State.CONFIRMED)
    node.now[0] += 120
    assert node.retention().free_working_data() == 1
    assert node.left_of(job) == {"overlay.png"}
    assert node.outbound() == []
    assert node.vault.names(STUDY) == ["crosswalk-1"]
    assert node.last_note() == (job.id, "working data freed")
    assert node.retention().free_working_data() == 0


def test_what_a_killed_worker_had_begun_goes_too(node: Node, tmp_path: Path) -> None:
    """Half a bundle has no name yet, and nothing else of its job is there."""
    job = node.job(State.CONFIRMED)
    node.artifacts.delete(f"{job.id}/instances")
    node.artifacts.delete(f"{job.id}/results")
    begun = tmp_path / "artifacts" / job.id / "instances" / ".begun"
    begun.mkdir(parents=True)
    (begun / "000001.dcm").write_bytes(b"x")
    node.now[0] += 120
    assert node.retention().free_working_data() == 1
    assert [one.name for one in (tmp_path / "artifacts" / job.id).iterdir()] == ["overlay.png"]
    assert node.retention().free_working_data() == 0


@pytest.mark.parametrize("state", HELD)
def test_working_data_of_a_job_that_may_go_on_stays(node: Node, state: State) -> None:
    """However long it takes: a person decides about what is held."""
    job = node.job(state)
    node.now[0] += 1000 * DAY_S
    assert node.retention().free_working_data() == 0
    assert "instances/000001.dcm" in node.left_of(job)
    assert len(node.outbound()) == 1


def test_a_superseded_jobs_working_data_goes_altogether(node: Node) -> None:
    """Another job makes the result; nobody looks at the old picture."""
    job = node.job(State.SUPERSEDED)
    node.now[0] += 120
    assert node.retention().free_working_data() == 1
    assert node.left_of(job) == set()
    assert node.outbound() == []
    assert node.artifacts.folders() == []


@pytest.mark.parametrize("state", [State.CANCELED, State.REJECTED])
def test_a_stopped_jobs_working_data_goes_after_its_time_and_a_retry_begins_before_it(
    node: Node, state: State
) -> None:
    """A person may change their mind, now at once and later from the received series."""
    job = node.job(state)
    node.now[0] += 13 * DAY_S
    assert node.retention().free_working_data() == 0
    node.now[0] += 2 * DAY_S
    assert node.retention(Keep(30, 7, None)).free_working_data() == 0
    assert node.retention().free_working_data() == 1
    assert node.left_of(job) == set()
    assert node.ledger.retry(job.id).step is StepName.DEIDENTIFY


def test_a_series_is_deleted_when_its_results_have_been_proven_for_long_enough(node: Node) -> None:
    """Not a day before, and the picture goes with it."""
    job = node.job(State.CONFIRMED)
    series_id, _ = node.series()
    node.now[0] += 29 * DAY_S
    assert node.retention().delete_received() == 0
    node.now[0] += 2 * DAY_S
    assert node.retention(Keep(None, None, None)).delete_received() == 0
    assert node.retention().delete_received() == 1
    assert series_id not in node.orthanc.get("/series").json()
    assert node.left_of(job) == set()
    assert node.last_note() == (job.id, "received series deleted")


@pytest.mark.parametrize("state", [*HELD, State.CANCELED, State.REJECTED, State.SUPERSEDED])
def test_a_series_without_a_proven_result_is_never_deleted(node: Node, state: State) -> None:
    """Held, failed, rejected for its geometry: it may be the only copy."""
    node.job(state, error="GeometryError")
    node.now[0] += 1000 * DAY_S
    assert node.retention().delete_received() == 0
    assert len(node.orthanc.get("/instances").json()) == 3


def test_a_series_that_no_rule_wants_is_deleted_only_where_the_site_says_so(node: Node) -> None:
    """By default it is kept for ever."""
    node.job(State.REJECTED, step=StepName.ROUTE, **UNWANTED)
    node.now[0] += 8 * DAY_S
    assert node.retention(Keep(30, None, 14)).delete_received() == 0
    assert node.retention().delete_received() == 1


def test_a_series_that_a_person_takes_up_in_the_last_moment_is_not_deleted(node: Node) -> None:
    """The jobs have been read, one is retried under a new rule, and only then is it its turn."""
    job = node.job(State.REJECTED, step=StepName.ROUTE, **UNWANTED)
    node.now[0] += 8 * DAY_S
    node.meanwhile.append(lambda: node.ledger.retry(job.id))
    assert node.retention().delete_received() == 0
    assert node.read(job).state is State.QUEUED
    assert len(node.orthanc.get("/instances").json()) == 3
    assert "instances/000001.dcm" in node.left_of(job)


def test_a_series_of_two_models_waits_for_both(node: Node) -> None:
    """One result is proven, the other model's job has failed: the series stays."""
    job = node.job(State.CONFIRMED)
    twin = node.read(job)
    with node.ledger.database.transaction() as tx:
        row = dict(tx.execute(sa.select(JOBS).where(JOBS.c.id == twin.id)).one()._mapping)
        row |= {"id": "twin", "key": "twin", "state": State.FAILED}
        tx.execute(sa.insert(JOBS).values(**row))
    node.now[0] += 1000 * DAY_S
    assert node.retention().delete_received() == 0


def test_a_series_that_received_something_new_is_not_deleted(node: Node) -> None:
    """An instance that no job has seen, or that the quiet timer still waits for."""
    node.job(State.CONFIRMED)
    node.now[0] += 1000 * DAY_S
    with node.ledger.database.transaction() as tx:
        tx.execute(sa.update(ARRIVALS).values(quiet=False))
    assert node.retention().delete_received() == 0
    with node.ledger.database.transaction() as tx:
        tx.execute(sa.update(ARRIVALS).values(quiet=True))
    node.orthanc.upload(ct_instance(99))
    assert node.retention().delete_received() == 0
    assert len(node.orthanc.get("/instances").json()) == 4
