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
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from node.edges import beneath
from node.errors import DamagedArtifact, OutOfSpace, Unavailable
from node.pipeline.working_data import is_digest

INDEX = "SHA256SUMS"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
#: What nobody holds is removed once it is older than the moment between making and locking.
_ABANDONED_S = 60.0
_READERS = 4
#: Several at a time share the file system's commits: on a busy disk in half the time of one.
_FLUSHERS = 4
#: An index has less than 100 bytes for each file; an explicit length (PS3.5 7.1) has 32 bits.
_MOST_INDEX_BYTES = 2**26
_MOST_BYTES = 2**32


@dataclass(frozen=True)
class FolderBundle:
    """``node.ports.Bundle`` in a folder: every byte is checked when it is read."""

    root: Path
    parent: str
    digest: str
    index: Mapping[str, str]  #: name → SHA-256

    @classmethod
    def opened(cls, root: Path, parent: str, digest: str) -> FolderBundle:
        """The bundle of that digest below ``parent``, a folder of ``root``.

        Raises
        ------
        DamagedArtifact
            It is not there, or its index was altered.
        """
        kind = PurePosixPath(parent).name
        if not is_digest(digest):
            raise DamagedArtifact(f"The job has no {kind} in the artifact store")
        index = _read(root, f"{parent}/{digest}/{INDEX}", kind, _MOST_INDEX_BYTES)
        if hashlib.sha256(index).hexdigest() != digest:
            raise _damaged(kind, INDEX)
        try:
            lines = [line.split("  ", 1) for line in index.decode("ascii").splitlines()]
            return cls(root, parent, digest, {name: file_digest for file_digest, name in lines})
        except ValueError:  # whoever stated the digest has written no index
            raise _damaged(kind, INDEX) from None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all files, sorted."""
        return tuple(sorted(self.index))

    def get(self, name: str, at_most: int | None = None) -> bytes:
        """The bytes of one file; KeyError if the bundle never had it.

        Raises
        ------
        DamagedArtifact
            They are not what was written, or more than ``at_most``.
        """
        expected, kind = self.index[name], PurePosixPath(self.parent).name
        path = f"{self.parent}/{self.digest}/{name}"
        data = _read(self.root, path, kind, _MOST_BYTES if at_most is None else at_most)
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

    def __init__(self, root: Path, folder: str, disk: ThreadPoolExecutor) -> None:
        self._root, self._folder, self._disk = root, folder, disk
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
        with beneath.folder_at(self._root, self._folder) as folder:
            os.fsync(folder)
        self.digest = hashlib.sha256(index).hexdigest()

    def _write(self, name: str, data: bytes) -> None:
        # By its name each time: what was deleted meanwhile is not written to.
        with disk_errors_named(), beneath.folder_at(self._root, self._folder) as folder:
            beneath.write(folder, name, data)
        # The disk works while the next file is made.
        self._flushed.append(self._disk.submit(flush, self._root, f"{self._folder}/{name}"))


@contextmanager
def writing(root: Path, parent: str) -> Iterator[FolderBundleWriter]:
    """A new bundle below ``parent``, there once the block has ended without an error.

    Raises
    ------
    OutOfSpace, Unavailable
        The disk is full, or cannot be written.
    """
    beside = beneath.unused_name()
    with disk_errors_named(), beneath.folder_at(root, parent, make=True) as folder:
        _remove_abandoned(folder)
        os.mkdir(beside, 0o700, dir_fd=folder)
        lock = os.open(beside, beneath.FOLDER, dir_fd=folder)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with ThreadPoolExecutor(_FLUSHERS, thread_name_prefix="disk") as disk:
            writer = FolderBundleWriter(root, f"{parent}/{beside}", disk)
            yield writer
            with disk_errors_named():
                writer.finish()
                _publish(root, parent, beside, writer.digest)
    finally:
        with suppress(OSError), beneath.folder_at(root, parent) as folder:
            beneath.remove(folder, beside)
        os.close(lock)


def bundles_below(root: Path, parent: str) -> list[str]:
    """Digests of what lies below ``parent``, damaged or not."""
    with beneath.if_there(), beneath.folder_at(root, parent) as folder:
        return [name for name in beneath.names_in(folder) if is_digest(name)]
    return []


def flush(root: Path, name: str) -> None:
    """Put a file on the disk."""
    with beneath.file_at(root, name) as descriptor:
        os.fsync(descriptor)


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
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise Unavailable(
                "The artifact store has a link or a file where a folder of the job belongs",
                remedy="Remove it, and find out what writes to the node's artifact folder beside "
                "the node and its compute workers.",
            ) from None
        raise


def _publish(root: Path, parent: str, beside: str, digest: str) -> None:
    """Give the folder its name, unless a whole bundle has it already."""
    with beneath.folder_at(root, parent) as folder:
        try:
            beneath.move(folder, beside, digest)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
            if _is_whole(root, parent, digest):
                return
            damaged = beneath.unused_name()
            beneath.move(folder, digest, damaged)
            beneath.move(folder, beside, digest)
            beneath.remove(folder, damaged)
        os.fsync(folder)


def _is_whole(root: Path, parent: str, digest: str) -> bool:
    try:
        return FolderBundle.opened(root, parent, digest).is_whole()
    except DamagedArtifact:
        return False


def _remove_abandoned(folder: int) -> None:
    """Remove what workers that were killed had begun: nobody holds its lock."""
    for begun in beneath.names_in(folder):
        if not begun.startswith("."):
            continue
        with suppress(OSError):
            begun_at = os.stat(begun, dir_fd=folder, follow_symlinks=False).st_mtime
            if time.time() - begun_at < _ABANDONED_S:
                continue
            lock = os.open(begun, beneath.FOLDER, dir_fd=folder)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                beneath.remove(folder, begun)
            finally:
                os.close(lock)


def _read(root: Path, path: str, kind: str, at_most: int) -> bytes:
    try:
        return beneath.read(root, path, at_most)
    except OSError as error:
        if beneath.is_not_there(error) or error.errno == errno.EIO:
            raise _damaged(kind, PurePosixPath(path).name) from None
        raise


def _damaged(kind: str, name: str) -> DamagedArtifact:
    return DamagedArtifact(f"{name} of {kind} in the artifact store is missing or altered")
