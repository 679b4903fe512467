"""Bundles: the files that one step leaves for the next, all of them or none, known by a digest.

A bundle is a folder that is written beside and renamed, so it is whole or not there. Its index has
the format of ``sha256sum`` (``sha256sum -c SHA256SUMS`` checks it by hand), and the SHA-256 of the
index is its name and its proof: the ledger remembers the digest, so what a dead disk, a power loss
or a worker that woke too late has left there is told from what the step has made. Two workers that
make the same bundle make one; two that make different ones are not in each other's way.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from node.errors import DamagedArtifact, OutOfSpace, Unavailable
from node.pipeline.working_data import is_digest

INDEX = "SHA256SUMS"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
#: What nobody holds is removed once it is older than the moment between making and locking.
_ABANDONED_S = 60.0
_READERS = 4
#: Several at a time share the file system's commits: on a busy disk in half the time of one.
_FLUSHERS = 4


@dataclass(frozen=True)
class FolderBundle:
    """``node.ports.Bundle`` in a folder: every byte is checked when it is read."""

    folder: Path
    digest: str
    index: Mapping[str, str]  #: name → SHA-256

    @classmethod
    def opened(cls, parent: Path, digest: str) -> FolderBundle:
        """The bundle of that digest below ``parent``.

        Raises
        ------
        DamagedArtifact
            It is not there, or its index was altered.
        """
        if not is_digest(digest):
            raise DamagedArtifact(f"The job has no {parent.name} in the artifact store")
        folder = parent / digest
        index = _read(folder / INDEX, parent.name)
        if hashlib.sha256(index).hexdigest() != digest:
            raise _damaged(parent.name, INDEX)
        lines = (line.split("  ", 1) for line in index.decode("ascii").splitlines())
        return cls(folder, digest, {name: file_digest for file_digest, name in lines})

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all files, sorted."""
        return tuple(sorted(self.index))

    def get(self, name: str) -> bytes:
        """The bytes of one file; KeyError if the bundle never had it.

        Raises
        ------
        DamagedArtifact
            They are not what was written.
        """
        expected, kind = self.index[name], self.folder.parent.name
        data = _read(self.folder / name, kind)
        if hashlib.sha256(data).hexdigest() != expected:
            raise _damaged(kind, name)
        return data

    def contents(self) -> list[bytes]:
        """The bytes of all files, in the order of :attr:`names`; read and checked in parallel.

        Raises
        ------
        DamagedArtifact
            Some are not what was written.
        """
        with ThreadPoolExecutor(_READERS, thread_name_prefix="bundle") as pool:
            return list(pool.map(self.get, self.names))

    def is_whole(self) -> bool:
        """Whether every byte is as it was written."""
        try:
            for name in self.names:
                self.get(name)
        except DamagedArtifact:
            return False
        return True


class FolderBundleWriter:
    """``node.ports.BundleWriter``: files that nobody sees before the last one is on the disk."""

    def __init__(self, folder: Path, disk: ThreadPoolExecutor) -> None:
        self._folder, self._disk = folder, disk
        self._index: dict[str, str] = {}
        self._flushed: list[Future[None]] = []
        self.digest = ""

    def add(self, name: str, data: bytes) -> None:
        """Write one file; a name is used once."""
        if not _NAME.fullmatch(name) or name == INDEX:
            raise ValueError("the name of a file in a bundle is plain")
        self._write(name, data)
        self._index[name] = hashlib.sha256(data).hexdigest()

    def finish(self) -> None:
        """Write the index, and wait until everything is on the disk."""
        lines = (f"{digest}  {name}\n" for name, digest in sorted(self._index.items()))
        index = "".join(lines).encode("ascii")
        self._write(INDEX, index)
        for flushed in self._flushed:
            flushed.result()
        flush(self._folder)
        self.digest = hashlib.sha256(index).hexdigest()

    def _write(self, name: str, data: bytes) -> None:
        path = self._folder / name
        with disk_errors_named():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
        # The disk works while the next file is made.
        self._flushed.append(self._disk.submit(flush, path))


@contextmanager
def writing(parent: Path) -> Iterator[FolderBundleWriter]:
    """A new bundle below ``parent``, there once the block has ended without an error.

    Raises
    ------
    OutOfSpace, Unavailable
        The disk is full, or cannot be written.
    """
    with disk_errors_named():
        make_folder(parent)
        _remove_abandoned(parent)
        beside = Path(tempfile.mkdtemp(prefix=".", dir=parent))
    lock = os.open(beside, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with ThreadPoolExecutor(_FLUSHERS, thread_name_prefix="disk") as disk:
            writer = FolderBundleWriter(beside, disk)
            yield writer
            with disk_errors_named():
                writer.finish()
                _publish(beside, parent, writer.digest)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        os.close(lock)


def bundles_below(parent: Path) -> list[str]:
    """Digests of what lies below ``parent``, damaged or not."""
    try:
        return sorted(path.name for path in parent.iterdir() if is_digest(path.name))
    except FileNotFoundError:
        return []


def make_folder(folder: Path) -> None:
    """Make a folder and what is missing above it, so that a power loss does not take it back."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    with suppress(FileExistsError):
        folder.mkdir(mode=0o750)
        flush(folder.parent)


def flush(path: Path) -> None:
    """Put a file, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors_named() -> Iterator[None]:
    """A full or failing disk, or a folder that was removed meanwhile: wait and try again."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutOfSpace("The artifact store is full") from None
        if error.errno in (errno.EIO, errno.EROFS, errno.ENOENT):
            raise Unavailable(
                f"The artifact store cannot be written ({errno.errorcode[error.errno]})",
                remedy="Check the disk and the file system of the node's artifact folder.",
            ) from None
        raise


def _publish(beside: Path, parent: Path, digest: str) -> None:
    """Give the folder its name, unless a whole bundle has it already."""
    target = parent / digest
    try:
        beside.rename(target)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        if _is_whole(parent, digest):
            return
        damaged = Path(tempfile.mkdtemp(prefix=".", dir=parent))
        target.rename(damaged)
        beside.rename(target)
        shutil.rmtree(damaged, ignore_errors=True)
    flush(parent)


def _is_whole(parent: Path, digest: str) -> bool:
    try:
        return FolderBundle.opened(parent, digest).is_whole()
    except DamagedArtifact:
        return False


def _remove_abandoned(parent: Path) -> None:
    """Remove what workers that were killed had begun: nobody holds its lock."""
    for begun in parent.glob(".*"):
        with suppress(OSError):
            if time.time() - begun.stat().st_mtime < _ABANDONED_S:
                continue
            lock = os.open(begun, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(begun, ignore_errors=True)
            finally:
                os.close(lock)


def _read(path: Path, kind: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EIO):
            raise _damaged(kind, path.name) from None
        raise


def _damaged(kind: str, name: str) -> DamagedArtifact:
    return DamagedArtifact(f"{name} of {kind} in the artifact store is missing or altered")
