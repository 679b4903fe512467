"""A sentinel patient goes through a node; nothing of it is found where nobody may know it."""

from __future__ import annotations

import base64
import binascii
import io
import json
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest

from tests.orthanc_server import OrthancServer
from tests.running_node import DEMO_CT, SOME_SLICES, RunningNode, Study, made_up_study

SENTINEL = {
    "PatientName": "Sentinelius^Quirin^Xaver",
    "PatientID": "MRN-SENTINEL-90210",
    "PatientBirthDate": "19031122",
    "AccessionNumber": "ACCSENTINEL77",
    "StudyDate": "20171113",
    "SeriesDate": "20171113",
    "AcquisitionDate": "20171113",
    "ContentDate": "20171113",
    "StudyID": "STUDYSENTINEL",
    "StudyDescription": "Sentinelius chest",
    "SeriesDescription": "MRN-SENTINEL-90210 lung",
    "ReferringPhysicianName": "Refersentinel^Dora",
    "InstitutionName": "Sentinel General Hospital",
}


class RedisMonitor:
    """Everything that passes through Redis, as Redis itself reports it (MONITOR)."""

    def __init__(self, port: int, password: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.sendall(f"AUTH {password}\r\nMONITOR\r\n".encode())
        self.heard = bytearray()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while data := self._receive():
            self.heard += data

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(65536)
        except OSError:
            return b""

    def stop(self) -> bytes:
        """What was heard; bodies of Celery messages (base64) are decoded and added."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        heard = bytes(self.heard)
        bodies = []
        for encoded in re.findall(rb"[A-Za-z0-9+/]{40,}={0,2}", heard):
            try:
                bodies.append(base64.b64decode(encoded, validate=True))
            except binascii.Error:
                continue
        return heard + b"\n".join(bodies)


def sentinels(study: Study) -> list[bytes]:
    """What to look for: whole values, and the parts of names."""
    found = set(SENTINEL.values())
    found |= {"Sentinelius", "Quirin", "Refersentinel"}  # digits alone occur in hashes by chance
    found |= {study.study_instance_uid, study.series_instance_uid, study.frame_of_reference_uid}
    found |= study.sop_instance_uids
    return sorted(value.encode() for value in found)


def files_below(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every file, the name being searched as well."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield str(path.relative_to(folder)), path.read_bytes()


def leaks(where: str, data: bytes, wanted: list[bytes]) -> list[str]:
    """Which sentinels occur in ``data``, in any case; as text for the failure's message."""
    lowered = data.lower()
    return [f"{where}: {value.decode()}" for value in wanted if value.lower() in lowered]


@pytest.fixture(scope="module")
def passed(
    tmp_path_factory: pytest.TempPathFactory, node: RunningNode, pacs: OrthancServer
) -> Iterator[tuple[RunningNode, list[bytes], bytes]]:
    """A confirmed sentinel study, one that was quarantined and one rejected, all remembered."""
    folder = tmp_path_factory.mktemp("sentinel")
    monitor = RedisMonitor(node.ports["broker"], node.secret("broker_password"))
    slices = DEMO_CT[SOME_SLICES]
    good = made_up_study(folder / "good", slices, **SENTINEL)
    burned = made_up_study(folder / "burned", slices, BurnedInAnnotation="YES", **SENTINEL)
    gap = made_up_study(folder / "gap", slices[:8] + slices[11:], **SENTINEL)
    held: list[tuple[str, bytes]] = []
    for study in (burned, gap, good):
        node.receive(study)
    node.wait_for(good, lambda job: job["step"] in ("infer", "encode", "reidentify", "deliver"))
    held += files_below(node.var / "artifacts")  # as the compute worker sees them
    assert node.wait_for(good)["state"] == "confirmed"
    assert node.wait_for(burned)["state"] == "quarantined"
    assert node.wait_for(gap)["state"] == "incomplete"
    wanted = sorted({value for one in (good, burned, gap) for value in sentinels(one)})
    heard = monitor.stop()
    assert any(name.endswith(".dcm") for name, _ in held), "nothing was seen in the compute zone"
    node.held_in_compute_zone = held  # type: ignore[attr-defined]
    yield node, wanted, heard


def test_the_search_finds_what_is_there(
    passed: tuple[RunningNode, list[bytes], bytes],
) -> None:
    """Positive control: Orthanc's own storage holds every sentinel."""
    node, wanted, _ = passed
    stored = b"".join(data for _, data in files_below(node.var / "orthanc" / "storage"))
    missing = [value for value in wanted if value.lower() not in stored.lower()]
    assert missing == []


@pytest.mark.parametrize("place", ["artifacts", "log", "vault", "redis", "run"])
def test_no_sentinel_below(passed: tuple[RunningNode, list[bytes], bytes], place: str) -> None:
    """Neither in a file's name nor in its bytes; the vault holds it encrypted."""
    node, wanted, _ = passed
    found = []
    for name, data in files_below(node.var / place):
        found += leaks(f"{place}/{name}", name.encode() + b"\n" + data, wanted)
    assert found == []


def test_no_sentinel_in_the_ledger(passed: tuple[RunningNode, list[bytes], bytes]) -> None:
    """Neither in the database nor in its write-ahead log."""
    node, wanted, _ = passed
    found = []
    for path in node.var.glob("ledger.sqlite*"):
        found += leaks(path.name, path.read_bytes(), wanted)
    assert found == []


def test_no_sentinel_passed_through_redis(
    passed: tuple[RunningNode, list[bytes], bytes],
) -> None:
    """Every command that Redis saw, message bodies decoded."""
    _, wanted, heard = passed
    assert b"segnode.run_next" in heard, "the monitor heard nothing"
    assert leaks("redis", heard, wanted) == []


def test_no_sentinel_reached_the_compute_zone(
    passed: tuple[RunningNode, list[bytes], bytes],
) -> None:
    """The artifacts as they were while the model ran, every element decoded."""
    node, wanted, _ = passed
    found = []
    for name, data in node.held_in_compute_zone:  # type: ignore[attr-defined]
        found += leaks(name, data, wanted)
        if name.endswith(".dcm"):
            text = str(pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True))
            found += leaks(name, text.encode(), wanted)
    assert found == []


def test_no_sentinel_in_what_the_command_prints(
    passed: tuple[RunningNode, list[bytes], bytes],
) -> None:
    """`segnode jobs` and `status` name no patient, also for what stopped."""
    node, wanted, _ = passed
    printed = "".join(
        node.segnode(*words, check=False)
        for words in (["jobs"], ["jobs", "--json", "--limit", "500"], ["status"])
    )
    assert len(json.loads(node.segnode("jobs", "--json"))) >= 3
    assert leaks("output", printed.encode(), wanted) == []


def environment(pid: int) -> dict[str, str]:
    """What a process was started with; raises when it is no more."""
    pairs = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if pair)


def test_the_compute_worker_knows_no_hospital(node: RunningNode) -> None:
    """Its environment names a broker, artifacts, models, threads, and nothing of the hospital."""
    worker, *children = node.processes("compute")
    # Libraries (Celery, OpenMP, torch, GDCM) tell their children who they are, in names of their
    # own; what the hospital gave the worker is all that any of them can have.
    given = {
        name
        for name in environment(worker)
        if not name.startswith(("SEGNODE_COMPUTE_", "OMP_", "OPENBLAS_"))
    }
    assert given <= {"PATH", "HOME", "PYTHONUNBUFFERED", "LC_CTYPE"}
    seen = 0
    for pid in (worker, *children):
        try:
            values = "\n".join(f"{name}={value}" for name, value in environment(pid).items())
        except (FileNotFoundError, ProcessLookupError):
            continue  # a decoder that had nothing more to do
        seen += 1
        for secret in ("orthanc_password", "vault_key", "pseudonym_key", "console_token"):
            assert node.secret(secret) not in values
        for hospital in ("ledger", "vault", "orthanc", str(node.ports["http"])):
            assert hospital not in values.lower()
    assert seen >= 2  # the worker and the child that runs networks
