"""`segnode up` and `down`, and the commands of a person, against a node of their own."""

from __future__ import annotations

import os
import signal
import socket
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from node.edges.orthanc_config import DicomPeer
from tests.conftest import NO_BRIDGE
from tests.orthanc_server import OrthancServer, require_orthanc
from tests.running_node import (
    DEMO_CT,
    SOME_SLICES,
    RunningNode,
    descendants,
    made_up_study,
    segmentations,
)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[tuple[RunningNode, OrthancServer]]:
    """A node that is not started yet, and a PACS that is."""
    require_orthanc()
    ports = RunningNode.free_ports()
    peer = DicomPeer("segnode", "SEGNODE", "127.0.0.1", ports["dicom"], may_query=True)
    with OrthancServer(
        tmp_path / "pacs", ae_title="HOSPITAL", peers=[peer], bridge=NO_BRIDGE
    ) as pacs:
        node = RunningNode(tmp_path / "node", pacs, ports)
        yield node, pacs
        node.segnode("down", check=False)


def supervisor_pid(node: RunningNode) -> int:
    return int((node.var / "run" / "supervisord.pid").read_text())


def test_down_leaves_no_process_and_up_goes_on_where_it_was(
    own: tuple[RunningNode, OrthancServer], tmp_path: Path
) -> None:
    """A study that was waiting when the node went down is processed after the next start."""
    node, pacs = own
    node.segnode("up")
    node.segnode("up")  # a second one finds everything running
    pid = supervisor_pid(node)
    children = descendants(pid)
    assert len(children) >= 6
    study = made_up_study(tmp_path / "ct", DEMO_CT[SOME_SLICES])
    node.receive(study)
    node.segnode("down")
    assert [one for one in (pid, *children) if Path(f"/proc/{one}").exists()] == []

    node.segnode("up")
    assert node.wait_for(study)["state"] == "confirmed"
    assert len(segmentations(pacs, study)) == 1


def test_up_after_its_supervisor_was_killed_starts_everything_afresh(
    own: tuple[RunningNode, OrthancServer], tmp_path: Path
) -> None:
    """SIGKILL to supervisord with a study on its way: no process is doubled, the study ends."""
    node, pacs = own
    node.segnode("up")
    study = made_up_study(tmp_path / "ct", DEMO_CT[SOME_SLICES])
    node.receive(study)
    pid = supervisor_pid(node)
    before = descendants(pid)
    os.kill(pid, signal.SIGKILL)
    said = node.segnode("up")
    assert "supervisor that had been killed" in said
    assert [one for one in before if Path(f"/proc/{one}/exe").exists()] == []
    assert node.wait_for(study)["state"] == "confirmed"
    assert len(segmentations(pacs, study)) == 1


def test_a_pacs_that_is_down_delays_its_results_and_loses_none(
    own: tuple[RunningNode, OrthancServer], tmp_path: Path
) -> None:
    """The job waits with cause and time; when the PACS is back, the SEG arrives once."""
    node, pacs = own
    node.segnode("up")
    study = made_up_study(tmp_path / "ct", DEMO_CT[SOME_SLICES])
    pacs.stop()
    node.receive(study)
    waiting = node.wait_for(study, lambda job: job["state"] == "waiting")
    assert (waiting["step"], waiting["error"]) == ("deliver", "PacsUnavailable")
    assert waiting["cause"]
    assert waiting["remedy"]
    assert waiting["next_try_at"]
    pacs.start()
    assert node.wait_for(study)["state"] == "confirmed"
    assert len(segmentations(pacs, study)) == 1


def test_redis_that_forgets_everything_loses_no_job(
    own: tuple[RunningNode, OrthancServer], tmp_path: Path
) -> None:
    """SIGKILL to Redis, which keeps nothing on disk, in the middle of a job."""
    node, pacs = own
    node.segnode("up")
    study = made_up_study(tmp_path / "ct", DEMO_CT[SOME_SLICES])
    node.receive(study)
    node.wait_for(study, lambda job: job["step"] in ("deidentify", "infer"))
    os.kill(node.processes("redis")[0], 9)
    assert node.wait_for(study)["state"] == "confirmed"
    assert len(segmentations(pacs, study)) == 1


def test_a_port_in_use_is_named_and_nothing_is_started(
    own: tuple[RunningNode, OrthancServer],
) -> None:
    """The message names the setting to change."""
    node, _ = own
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", node.ports["console"]))
        taken.listen()
        said = node.segnode("up", check=False)
    assert "console.port" in said
    assert not (node.var / "run" / "supervisord.pid").exists()


def test_secrets_are_readable_by_their_owner_only(
    own: tuple[RunningNode, OrthancServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made at the first start, never by a person; a loosened one stops the next start.

    What a site keeps in the environment reaches neither the broker nor the compute zone.
    """
    node, _ = own
    monkeypatch.setenv("SEGNODE_TEST_SECRET", "sentinel")
    node.segnode("up")
    for name in ("redis", "compute"):
        for pid in node.processes(name):
            with suppress(FileNotFoundError, ProcessLookupError):  # it had nothing more to do
                assert b"sentinel" not in Path(f"/proc/{pid}/environ").read_bytes()
    files = list((node.var / "secrets").iterdir())
    assert len(files) == 5
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)
    node.segnode("down")
    files[0].chmod(0o644)
    said = node.segnode("up", check=False)
    assert "chmod 600" in said


def test_the_doctor_finds_a_healthy_node_healthy_and_names_a_dead_peer(
    node: RunningNode, own: tuple[RunningNode, OrthancServer]
) -> None:
    """Everything good on the shared node; the own one's PACS is stopped, and said so."""
    assert "✗" not in node.segnode("doctor")
    stopped, pacs = own
    stopped.segnode("up")
    pacs.stop()
    said = stopped.segnode("doctor", check=False)
    assert "✗" in said
    assert "hospital" in said


def test_pacs_check_shows_what_the_destination_takes(node: RunningNode) -> None:
    """Echo, SOP classes, query and commitment, each with its answer."""
    said = node.segnode("pacs", "check", "hospital")
    for subject in (
        "Segmentation", "Secondary Capture", "C-FIND", "Storage commitment", "TLS",
        'results = ["seg", "sr", "text_sr", "rejection"]',
    ):  # fmt: skip
        assert subject in said
    unknown = node.segnode("pacs", "check", "nowhere", check=False)
    assert "There is no peer 'nowhere'" in unknown
    assert "hospital" in unknown


def test_a_folder_is_processed_without_servers(node: RunningNode, tmp_path: Path) -> None:
    """`segnode process`: the SEG has the patient; a series that is unsuitable is explained."""
    good = made_up_study(tmp_path / "in" / "good", DEMO_CT[SOME_SLICES], PatientName="Doe^Jane")
    made_up_study(tmp_path / "in" / "single", DEMO_CT[:1])
    (tmp_path / "in" / "notes.txt").write_text("no DICOM")
    out = tmp_path / "out"
    said = node.segnode(
        "process", str(tmp_path / "in"), "--model", "ct_lungs", "--out", str(out), check=False
    )
    import pydicom

    [seg] = [pydicom.dcmread(file) for file in out.glob("*.dcm")]
    assert str(seg.PatientName) == "Doe^Jane"
    assert seg.StudyInstanceUID == good.study_instance_uid
    assert len(list(out.glob("*.png"))) == 1
    assert "two or more" in said
