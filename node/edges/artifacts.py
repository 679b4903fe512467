"""The artifact store: de-identified working data in a local folder."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path, PurePosixPath

from node.errors import OutOfSpace


class FolderArtifacts:
    """``node.ports.Artifacts`` in a folder. A name is a relative path with forward slashes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o750)

    def put(self, name: str, data: bytes) -> None:
        """Write beside, then rename: a reader sees all of it or nothing."""
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(dir=path.parent, prefix=".")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            Path(beside).replace(path)
        except OSError as error:
            Path(beside).unlink(missing_ok=True)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise OutOfSpace("The artifact store is full") from None
            raise

    def get(self, name: str) -> bytes:
        """The bytes of ``name``; KeyError when there is none."""
        try:
            return self._path(name).read_bytes()
        except FileNotFoundError:
            raise KeyError(name) from None

    def names(self, prefix: str) -> list[str]:
        """All names below ``prefix``, sorted."""
        start = self._path(prefix)
        return sorted(
            str(PurePosixPath(path.relative_to(self._folder)))
            for path in start.rglob("*")
            if path.is_file() and not path.name.startswith(".")
        )

    def delete(self, prefix: str) -> None:
        """Remove one file, or everything below a folder."""
        path = self._path(prefix)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        path = (self._folder / name).absolute()
        if ".." in PurePosixPath(name).parts or not path.is_relative_to(self._folder):
            raise ValueError("an artifact's name may not leave the store")
        return path
