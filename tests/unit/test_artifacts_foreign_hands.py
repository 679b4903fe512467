"""The artifact store in foreign hands: what the compute zone may lay there reaches nothing else."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from node.edges.artifacts import FolderArtifacts
from node.edges.bundles import INDEX
from node.errors import DamagedArtifact, Unavailable

#: Where a link may be laid, by the job's id: for its folder, for one inside, for a file.
PLACES = ("job", "job/instances", "job/overlay.png")


@pytest.fixture
def artifacts(tmp_path: Path) -> FolderArtifacts:
    return FolderArtifacts(tmp_path / "artifacts")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of the hospital's that looks like a job's, with what deleting would look for."""
    folder = tmp_path / "vault"
    for name in ("overlay.png", "instances/000001.dcm", ".keys/key", ".deleted-1/key"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"of the hospital")
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (0, 0))  # old enough to be taken for abandoned
    return folder


def everything_in(folder: Path) -> set[tuple[Path, float]]:
    return {(path, path.lstat().st_mtime) for path in folder.rglob("*")}


@pytest.mark.parametrize("place", PLACES)
def test_a_link_leads_nowhere_and_deleting_it_removes_only_the_link(
    artifacts: FolderArtifacts, tmp_path: Path, outside: Path, place: str
) -> None:
    """For everything that retention, the console and the steps do with what they find there."""
    link = tmp_path / "artifacts" / place
    link.parent.mkdir(exist_ok=True)
    target = outside / "overlay.png" if place.endswith(".png") else outside
    link.symlink_to(target)
    before = everything_in(outside)

    with pytest.raises(KeyError):
        artifacts.get("job/overlay.png")
    assert artifacts.names("job/") == []
    assert artifacts.bundles("job/instances") == []
    assert artifacts.folders() == ["job"]
    for name in artifacts.inside("job"):
        artifacts.delete(f"job/{name}")
    artifacts.delete("job/instances/000001.dcm")
    artifacts.delete("job/instances")
    artifacts.delete("job/overlay.png")
    assert link.is_symlink() is (place == "job")  # nothing of the job was behind it
    artifacts.delete("job/")
    assert list((tmp_path / "artifacts").iterdir()) == []
    assert everything_in(outside) == before


@pytest.mark.parametrize("place", ["job", "job/instances"])
def test_nothing_is_written_where_a_link_leads(
    artifacts: FolderArtifacts, tmp_path: Path, outside: Path, place: str
) -> None:
    """The job waits, and says what a person has to remove; then it goes on."""
    link = tmp_path / "artifacts" / place
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(outside)
    before = everything_in(outside)
    with pytest.raises(Unavailable, match="a link") as told, artifacts.writing("job/instances"):
        pass
    assert "artifact folder" in told.value.remedy
    with pytest.raises(Unavailable, match="a link"):
        artifacts.put("job/instances/review.json", b"1")
    assert everything_in(outside) == before
    link.unlink()
    artifacts.put("job/instances/review.json", b"1")
    assert artifacts.get("job/instances/review.json") == b"1"


def test_a_file_that_is_replaced_by_a_link_is_replaced_again(
    artifacts: FolderArtifacts, tmp_path: Path, outside: Path
) -> None:
    """The picture is written anew, and not into what the link led to."""
    artifacts.put("job/overlay.png", b"first")
    picture = tmp_path / "artifacts" / "job" / "overlay.png"
    picture.unlink()
    picture.symlink_to(outside / "overlay.png")
    artifacts.put("job/overlay.png", b"second")
    assert artifacts.get("job/overlay.png") == b"second"
    assert (outside / "overlay.png").read_bytes() == b"of the hospital"


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)  # who opens it to read waits for a writer


def _link_to_itself_elsewhere(path: Path) -> None:
    """What it leads to is even what was written."""
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _hole(path: Path) -> None:
    """A terabyte that takes no room on the disk, and all of the memory."""
    os.truncate(path, 2**40)


@pytest.mark.parametrize("name", ["000001.dcm", INDEX])
@pytest.mark.parametrize("replaced_by", [_pipe, _link_to_itself_elsewhere, _folder, _hole])
def test_a_bundle_is_read_from_plain_files_of_a_plain_size(
    artifacts: FolderArtifacts, tmp_path: Path, replaced_by: Callable[[Path], None], name: str
) -> None:
    """Everything else is damage, found without waiting; and what is made again is whole."""

    def write() -> str:
        with artifacts.writing("job/instances") as bundle:
            bundle.add("000001.dcm", b"1")
        return bundle.digest

    digest = write()
    replaced_by(tmp_path / "artifacts" / "job" / "instances" / digest / name)
    with pytest.raises(DamagedArtifact):
        artifacts.bundle("job/instances", digest).contents()
    assert write() == digest
    assert artifacts.bundle("job/instances", digest).contents() == [b"1"]


def test_a_bundle_whose_place_a_link_has_taken_is_made_anyway(
    artifacts: FolderArtifacts, tmp_path: Path, outside: Path
) -> None:
    """Its digest can be known before: the same instances make the same."""
    parent = tmp_path / "artifacts" / "job" / "instances"
    with artifacts.writing("job/instances") as bundle:
        bundle.add("000001.dcm", b"1")
    (parent / bundle.digest).rename(parent / "moved")
    (parent / bundle.digest).symlink_to(outside)
    before = everything_in(outside)
    with artifacts.writing("job/instances") as again:
        again.add("000001.dcm", b"1")
    assert artifacts.bundle("job/instances", again.digest).contents() == [b"1"]
    assert everything_in(outside) == before


def test_an_index_that_is_none_is_damage(artifacts: FolderArtifacts, tmp_path: Path) -> None:
    """The compute zone states the digest of a bundle, so the index may hold anything."""
    for index in (b"no index", b"\xff\n", b"one-column\n"):
        digest = hashlib.sha256(index).hexdigest()
        folder = tmp_path / "artifacts" / "job" / "label_map" / digest
        folder.mkdir(parents=True)
        (folder / INDEX).write_bytes(index)
        with pytest.raises(DamagedArtifact):
            artifacts.bundle("job/label_map", digest)
