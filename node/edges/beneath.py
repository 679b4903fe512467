"""A folder that others may write to: what is in it is opened without following a link.

The compute zone, where programs of others run, writes to the artifact store. A link that it lays
there leads nowhere: each part of a name is opened from the descriptor of the one before (openat(2),
O_NOFOLLOW), so it cannot be exchanged in between either. What is no plain file, as a pipe that
would keep a reader waiting for ever, is none. Names have forward slashes.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO)

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def is_not_there(error: OSError) -> bool:
    """Nothing is there, or only what is not followed: a link, a file for a folder, a socket."""
    return error.errno in _NOT_THERE


@contextmanager
def if_there() -> Iterator[None]:
    """End the block where something is not there."""
    try:
        yield
    except OSError as error:
        if not is_not_there(error):
            raise


@contextmanager
def folder_at(root: Path, name: str, *, make: bool = False) -> Iterator[int]:
    """The descriptor of a folder below ``root``; ``make`` makes what is missing, for good.

    Raises
    ------
    OSError
        It :func:`is_not_there`, or the disk's own.
    """
    if make:
        root.mkdir(0o750, parents=True, exist_ok=True)
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in checked(name).parts:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(part, 0o750, dir_fd=descriptor)
                    os.fsync(descriptor)  # so that a power loss does not take it back
            inner = os.open(part, FOLDER, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def file_at(root: Path, name: str) -> Iterator[int]:
    """The descriptor of a plain file below ``root``, to be read.

    Raises
    ------
    OSError
        As :func:`folder_at`.
    """
    path = checked(name)
    with folder_at(root, str(path.parent)) as folder:
        descriptor = os.open(path.name, _FILE, dir_fd=folder)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise FileNotFoundError(errno.ENOENT, "no plain file")
        yield descriptor
    finally:
        os.close(descriptor)


def read(root: Path, name: str, at_most: int) -> bytes:
    """The bytes of a file below ``root``; one of more than ``at_most`` bytes is not there.

    Raises
    ------
    OSError
        As :func:`folder_at`.
    """
    with file_at(root, name) as descriptor, os.fdopen(descriptor, "rb", closefd=False) as file:
        size = os.fstat(descriptor).st_size
        if size > at_most:
            raise FileNotFoundError(errno.ENOENT, "too large")
        return file.read(size)


def write(folder: int, name: str, data: bytes) -> None:
    """Write a new file into an open folder; for its owner only."""
    new = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with os.fdopen(os.open(name, new, 0o600, dir_fd=folder), "wb") as file:
        file.write(data)


def move(folder: int, name: str, to: str) -> None:
    """Rename within an open folder, whatever it is: a link itself, not where it leads."""
    os.rename(name, to, src_dir_fd=folder, dst_dir_fd=folder)


def remove(folder: int, name: str) -> None:
    """Remove from an open folder a file, a link itself, or a folder with all that is below it."""
    try:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)
    except IsADirectoryError:
        # Opened from descriptor to descriptor too. What is nested too deep for that stays.
        with suppress(RecursionError):
            shutil.rmtree(name, ignore_errors=True, dir_fd=folder)


def names_in(folder: int) -> list[str]:
    """Names of all that is in an open folder, sorted."""
    return sorted(os.listdir(folder))


def unused_name(prefix: str = ".") -> str:
    """A name that nobody has; with a dot before it, it is not seen."""
    return f"{prefix}{secrets.token_hex(8)}"


def checked(name: str) -> PurePosixPath:
    """The name's parts; ValueError where they lead elsewhere."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError("an artifact's name may not leave the store")
    return path
