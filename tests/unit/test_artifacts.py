"""The artifact store: a bundle is whole or not there, and what is altered is told from it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.edges import bundles
from node.edges.artifacts import FolderArtifacts
from node.errors import DamagedArtifact, OutOfSpace, Unavailable

FILES = {f"{number:06}.dcm": bytes([number]) * 5000 for number in range(1, 6)}


@pytest.fixture
def artifacts(tmp_path: Path) -> FolderArtifacts:
    return FolderArtifacts(tmp_path)


def write(artifacts: FolderArtifacts, files: dict[str, bytes] = FILES) -> str:
    with artifacts.writing("job/instances") as bundle:
        for name, data in files.items():
            bundle.add(name, data)
    return bundle.digest


def folder_of(tmp_path: Path, digest: str) -> Path:
    return tmp_path / "job" / "instances" / digest


def test_a_bundle_is_read_as_it_was_written(artifacts: FolderArtifacts, tmp_path: Path) -> None:
    """By us, and by sha256sum; the same files in another order are the same bundle."""
    digest = write(artifacts)
    bundle = artifacts.bundle("job/instances", digest)
    assert dict(zip(bundle.names, bundle.contents(), strict=True)) == FILES
    command = ["sha256sum", "--check", "--strict", bundles.INDEX]
    said = subprocess.run(command, cwd=folder_of(tmp_path, digest), check=False)
    assert said.returncode == 0
    assert write(artifacts, dict(reversed(FILES.items()))) == digest
    assert artifacts.bundles("job/instances") == [digest]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_no_change_of_any_file_is_missed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """A byte flipped, a tail lost, a file emptied or gone, the index too: never read as whole."""
    folder = tmp_path_factory.mktemp("store")
    artifacts = FolderArtifacts(folder)
    digest = write(artifacts, {"a": b"one", "b": b"two", "c": b""})
    path = folder_of(folder, digest) / data.draw(st.sampled_from(["a", "b", bundles.INDEX]))
    stored = bytearray(path.read_bytes())
    where = data.draw(st.integers(0, len(stored) - 1))
    match data.draw(st.sampled_from(["flip", "cut", "remove", "grow"])):
        case "flip":
            stored[where] ^= 1 << data.draw(st.integers(0, 7))
            path.write_bytes(stored)
        case "cut":
            path.write_bytes(stored[:where])
        case "remove":
            path.unlink()
        case "grow":
            path.write_bytes(stored + b"\0")
    with pytest.raises(DamagedArtifact):
        artifacts.bundle("job/instances", digest).contents()
    assert write(artifacts, {"a": b"one", "b": b"two", "c": b""}) == digest
    assert artifacts.bundle("job/instances", digest).contents() == [b"one", b"two", b""]


def test_what_is_not_finished_is_not_there(artifacts: FolderArtifacts, tmp_path: Path) -> None:
    """While it is written nobody sees it, and an error in the middle leaves nothing."""
    with (
        pytest.raises(RuntimeError, match="in the middle"),
        artifacts.writing("job/instances") as bundle,
    ):
        bundle.add("000001.dcm", b"1")
        assert artifacts.names("job") == []
        assert artifacts.bundles("job/instances") == []
        raise RuntimeError("in the middle")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("digest", ["", "0" * 64, "../../etc", "A" * 64])
def test_a_bundle_that_nobody_wrote_is_damage(artifacts: FolderArtifacts, digest: str) -> None:
    """Purged, of an earlier version, or no digest at all: made again rather than a defect."""
    with pytest.raises(DamagedArtifact):
        artifacts.bundle("job/instances", digest).contents()
    assert artifacts.bundles("job/instances") == []


def test_a_worker_that_wakes_too_late_changes_nothing(
    artifacts: FolderArtifacts,
) -> None:
    """It stalls half-way; its successor finishes and is read while the first goes on and ends."""
    stalled, go_on = threading.Event(), threading.Event()

    def first() -> None:
        with artifacts.writing("job/instances") as bundle:
            bundle.add("000001.dcm", b"of the first")
            stalled.set()
            go_on.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    stalled.wait(10)
    digest = write(artifacts)
    successor = artifacts.bundle("job/instances", digest)
    before = successor.get("000001.dcm")
    go_on.set()
    thread.join()
    assert successor.get("000001.dcm") == before
    assert successor.contents() == [*FILES.values()]
    assert len(artifacts.bundles("job/instances")) == 2


def test_what_a_killed_worker_had_begun_is_removed_and_a_live_one_s_is_not(
    artifacts: FolderArtifacts, tmp_path: Path
) -> None:
    """SIGKILL in the middle of writing; its lock tells a living writer, whatever its age."""
    writer = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from node.edges.artifacts import FolderArtifacts\n"
        "with FolderArtifacts(Path(sys.argv[1])).writing('job/instances') as bundle:\n"
        "    bundle.add('000001.dcm', b'1')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    parent = tmp_path / "job" / "instances"
    subprocess.run([sys.executable, "-c", writer, str(tmp_path)], check=False)
    [begun] = parent.iterdir()
    with artifacts.writing("job/instances"):
        [alive] = {*parent.iterdir()} - {begun}
        for folder in (begun, alive):
            os.utime(folder, (0, 0))
        digest = write(artifacts)
        assert {path.name for path in parent.iterdir()} == {alive.name, digest}


def test_deleting_ends_what_somebody_is_still_writing(
    artifacts: FolderArtifacts, tmp_path: Path
) -> None:
    """A stalled worker cannot keep a purge from its end; it is told to try again, not a defect."""
    with pytest.raises(Unavailable), artifacts.writing("job/instances") as bundle:
        bundle.add("000001.dcm", b"1")
        artifacts.delete("job/instances")
        bundle.add("000002.dcm", b"2")
    assert [*(tmp_path / "job").iterdir()] == []
    artifacts.delete("job/instances")  # nothing there is no error


def test_a_full_disk_is_waited_for(artifacts: FolderArtifacts) -> None:
    """Whatever finds it full, the folder or a file: try again later."""
    with pytest.raises(OutOfSpace), bundles.disk_errors_named(), Path("/dev/full").open("wb") as f:
        f.write(b"1")
        f.flush()


def test_a_store_that_was_removed_is_made_again(tmp_path: Path) -> None:
    """Its data are gone, and are made again from Orthanc's copy while the node runs."""
    store = FolderArtifacts(tmp_path / "artifacts")
    write(store)
    shutil.rmtree(tmp_path / "artifacts")
    assert store.names("job/") == []
    assert store.bundle("job/instances", write(store)).contents() == [*FILES.values()]


def test_names_that_lead_elsewhere_are_refused(artifacts: FolderArtifacts) -> None:
    """Neither a bundle's files nor the store's names leave their folder."""
    for name in ("../x", "a/b", ".hidden", "", bundles.INDEX):
        with pytest.raises(ValueError, match="plain"), artifacts.writing("job/x") as bundle:
            bundle.add(name, b"")
    with pytest.raises(ValueError, match="leave the store"):
        artifacts.put("../x", b"")
