"""Where the vault keeps sealed bytes: records by study and name, all or nothing, owner only."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from anonymizer.disk import flush_folder
from anonymizer.errors import VaultError

_Made = TypeVar("_Made")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class RecordStore(Protocol):
    """Where sealed bytes lie: a folder, a database table, a bucket."""

    def read(self, study: str, name: str) -> bytes | None:
        """The bytes, or None if there are none."""

    def write(self, study: str, name: str, data: bytes) -> None:
        """Store durably, replacing what was there, all or nothing."""

    def names(self, study: str) -> list[str]:
        """Names of the records of a study, in order; empty if the study is unknown."""

    def studies(self) -> list[str]:
        """Names of all studies, in order."""

    def delete(self, study: str, name: str) -> None:
        """Remove one record, if it is there, and with the last one the study."""

    def clear(self, study: str, keep: str) -> None:
        """Remove every record of a study but ``keep``, and what an interrupted write left."""

    def lock(self, study: str) -> AbstractContextManager[None]:
        """Keep every other process and thread from locking the study meanwhile.

        Freed when the process that holds it dies. Not to be taken twice by the same thread.
        """


@dataclass(frozen=True)
class FolderRecords:
    """Records as files that only the owner can read, one folder per study."""

    path: Path

    def read(self, study: str, name: str) -> bytes | None:
        """The bytes, or None if there are none."""
        try:
            return self._file(study, name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, study: str, name: str, data: bytes) -> None:
        """Write beside it, flush to the disk, then rename: never half a record."""
        file = self._file(study, name)
        # mkstemp makes the file 0600; its name begins with a dot, so it is not listed.
        descriptor, temporary = self._within(
            file.parent, lambda: tempfile.mkstemp(prefix=".", dir=file.parent)
        )
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            Path(temporary).replace(file)
        except OSError:
            Path(temporary).unlink(missing_ok=True)
            raise
        flush_folder(file.parent)

    def names(self, study: str) -> list[str]:
        """Names of the records of a study, in order."""
        return _listed(self.path / checked_name(study))

    def studies(self) -> list[str]:
        """Names of all studies, in order."""
        return _listed(self.path)

    def delete(self, study: str, name: str) -> None:
        """Overwrite with zeros, then unlink; an empty folder goes too.

        Its name and time would say that something of the patient was destroyed, and when.
        """
        file = self._file(study, name)
        _erase(file)
        with contextlib.suppress(OSError):  # not empty, or gone already
            file.parent.rmdir()
            flush_folder(self.path)

    def clear(self, study: str, keep: str) -> None:
        """Overwrite and unlink every file but ``keep`` and the lock."""
        kept = {checked_name(keep), _LOCK}
        folder = self.path / checked_name(study)
        for file in list(folder.iterdir()) if folder.exists() else []:
            if file.name not in kept:
                _erase(file)

    @contextlib.contextmanager
    def lock(self, study: str) -> Iterator[None]:
        """``flock`` on a file of the study's folder."""
        folder = self.path / checked_name(study)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        descriptor = self._within(folder, lambda: os.open(folder / _LOCK, flags, 0o600))
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _file(self, study: str, name: str) -> Path:
        return self.path / checked_name(study) / checked_name(name)

    def _within(self, folder: Path, make: Callable[[], _Made]) -> _Made:
        """Make something in ``folder``, and the folder before it.

        Again if it was removed meanwhile, being empty, by who deleted its last record.
        """
        for _ in range(_MOST_TRIES):
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                folder.mkdir(mode=0o700)
                flush_folder(self.path)
            with contextlib.suppress(FileNotFoundError):
                return make()
        raise VaultError("A folder of the vault disappears as often as it is made")


_LOCK = ".lock"
_MOST_TRIES = 100


def checked_name(name: str) -> str:
    """``name`` if it is plain enough for a file; a path or a hidden name never is."""
    if not _NAME.fullmatch(name):
        raise VaultError("A study or record type has characters that a name may not have")
    return name


def _erase(file: Path) -> None:
    try:
        with file.open("r+b") as stream:
            stream.write(bytes(os.fstat(stream.fileno()).st_size))
            stream.flush()
            os.fsync(stream.fileno())
        file.unlink()
    except FileNotFoundError:  # somebody else was first
        return
    flush_folder(file.parent)


def _listed(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    except FileNotFoundError:
        return []
