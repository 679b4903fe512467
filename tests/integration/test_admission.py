"""Senders hear "out of resources" before a disk is full, and nothing is lost by it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dicom_peers import ct_instance

from node.edges.orthanc import Orthanc
from node.edges.orthanc_config import DicomPeer
from node.edges.orthanc_storage import OrthancStorage
from tests.conftest import NO_BRIDGE
from tests.orthanc_server import OrthancServer, free_port
from tests.running_node import DEMO_CT, SOME_SLICES, RunningNode, made_up_study, segmentations

MIB = 2**20
SmallDisk = Callable[[str, int], Path]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """Makes file systems in memory, of some MiB each."""
    mounted: list[Path] = []

    def make(name: str, mib: int) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=0700", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            pytest.skip("this user may not mount a file system")
        mounted.append(folder)
        return folder

    yield make
    for folder in reversed(mounted):
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, leave_bytes: int) -> Path:
    """Another program's file; what it leaves free."""
    free = os.statvfs(disk)
    file = disk / "somebody-elses"
    file.write_bytes(bytes(free.f_bavail * free.f_frsize - leave_bytes))
    return file


def storescu(orthanc: OrthancServer, folder: Path, number: int) -> str:
    """Send one instance; what DCMTK says of the answer."""
    file = folder / f"{number}.dcm"
    file.write_bytes(ct_instance(number))
    done = subprocess.run(
        ["/usr/bin/storescu", "-v", "-aet", "CT1", "-aec", orthanc.ae_title, "127.0.0.1",
         str(orthanc.dicom_port), str(file)],
        env={"PATH": os.environ["PATH"], "TCP_NODELAY": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


def stow(orthanc: OrthancServer, number: int) -> int:
    content_type = "multipart/related; type=application/dicom; boundary=b"
    part = (
        b"--b\r\nContent-Type: application/dicom\r\n\r\n" + ct_instance(number) + b"\r\n--b--\r\n"
    )
    answer = orthanc.post(
        "/dicom-web/studies", content=part, headers={"Content-Type": content_type}
    )
    return answer.status_code


@pytest.mark.parametrize("full", ["storage", "artifacts"])
def test_every_way_in_is_refused_while_a_disk_is_nearly_full(
    tmp_path: Path, small_disk: SmallDisk, full: str
) -> None:
    """0xA700 by C-STORE, 403 over HTTP; the object is not kept, and is taken when there is room."""
    peer = DicomPeer("ct", "CT1", "127.0.0.1", free_port())
    disks = {name: small_disk(f"orthanc/{name}", 48) for name in ("storage", "artifacts")}
    empty = disks["artifacts"] / ".space"
    empty.mkdir()
    environment = {
        "SEGNODE_ORTHANC_KEEP_FREE_BYTES": str(16 * MIB),
        "SEGNODE_ORTHANC_KEEP_FREE_IN": str(empty),
    }
    with OrthancServer(tmp_path / "orthanc", peers=[peer], environment=environment) as orthanc:
        storage = OrthancStorage(Orthanc(orthanc.url, *orthanc.auth))
        assert "(Success)" in storescu(orthanc, tmp_path, 1)
        assert not storage.state().refusing
        others = fill(disks[full], leave_bytes=15 * MIB)

        assert "OutOfResources" in storescu(orthanc, tmp_path, 2)
        assert orthanc.post("/instances", content=ct_instance(2)).status_code == 403
        assert stow(orthanc, 2) == 403
        assert len(orthanc.get("/instances").json()) == 1
        state = storage.state()
        assert state.refusing
        assert [disk.is_full for disk in state.disks].count(True) == 1

        others.unlink()
        assert "(Success)" in storescu(orthanc, tmp_path, 2)
        assert stow(orthanc, 3) == 200
        assert orthanc.post("/instances", content=ct_instance(4)).status_code == 200
        assert len(orthanc.get("/instances").json()) == 4


def test_what_lies_on_a_full_disk_already_is_imported_again(
    tmp_path: Path, small_disk: SmallDisk
) -> None:
    """A power cut on a full disk: an acknowledged instance does not wait for a person."""
    disk = small_disk("orthanc/storage", 48)
    environment = {"SEGNODE_ORTHANC_KEEP_FREE_BYTES": str(16 * MIB)}
    folder = disk / "0a" / "0b"
    folder.mkdir(parents=True)
    (folder / "0a0b0c0d-0000-4000-8000-000000000001").write_bytes(ct_instance(1))
    fill(disk, leave_bytes=8 * MIB)
    with OrthancServer(tmp_path / "orthanc", environment=environment) as orthanc:
        storage = OrthancStorage(Orthanc(orthanc.url, *orthanc.auth))
        assert storage.state().refusing
        assert [one.outcome for one in storage.restore()] == ["imported"]
        assert len(orthanc.get("/instances").json()) == 1


def test_a_study_refused_for_want_of_space_is_processed_when_it_is_sent_again(
    tmp_path: Path, small_disk: SmallDisk
) -> None:
    """The whole node on a small disk: refused, room made, sent again, the SEG comes home."""
    disk = small_disk("node", 400)
    ports = RunningNode.free_ports()
    peer = DicomPeer("segnode", "SEGNODE", "127.0.0.1", ports["dicom"], may_query=True)
    study = made_up_study(tmp_path / "ct", DEMO_CT[SOME_SLICES])
    with OrthancServer(
        tmp_path / "pacs", ae_title="HOSPITAL", peers=[peer], bridge=NO_BRIDGE
    ) as pacs:
        node = RunningNode(disk, pacs, ports)
        settings = node.configuration.read_text()
        node.configuration.write_text(
            settings.replace("[receive]", "[storage]\nkeep_free_gib = 0.15\n[receive]")
        )
        with node:
            others = fill(disk, leave_bytes=100 * MIB)
            refused = node.receive(study)
            assert refused.returncode != 0
            assert node.orthanc("/instances").json() == []
            said = node.segnode("doctor", check=False)
            assert "out of resources (0xA700)" in " ".join(said.split())

            others.unlink()
            assert node.receive(study).returncode == 0
            assert node.wait_for(study)["state"] == "confirmed"
            assert len(segmentations(pacs, study)) == 1
