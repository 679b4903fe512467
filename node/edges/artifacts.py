"""The artifact store: de-identified working data in a local folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import AbstractContextManager, suppress
from pathlib import Path, PurePosixPath

from node.edges.bundles import (
    FolderBundle,
    FolderBundleWriter,
    bundles_below,
    disk_errors_named,
    flush,
    make_folder,
    writing,
)

_DELETED = ".deleted-"


class FolderArtifacts:
    """``node.ports.Artifacts`` in a folder. A name is a relative path with forward slashes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o750)

    def writing(self, folder: str) -> AbstractContextManager[FolderBundleWriter]:
        """A new bundle below ``folder``, there once the block has ended without an error."""
        return writing(self._path(folder))

    def bundle(self, folder: str, digest: str) -> FolderBundle:
        """The bundle of that digest below ``folder``; DamagedArtifact if it is not there."""
        return FolderBundle.opened(self._path(folder), digest)

    def bundles(self, folder: str) -> list[str]:
        """Digests of all bundles below ``folder``."""
        return bundles_below(self._path(folder))

    def put(self, name: str, data: bytes) -> None:
        """Write beside, flush, then rename: a reader sees all of it or nothing, after any end."""
        path = self._path(name)
        with disk_errors_named():
            make_folder(path.parent)
            handle, beside = tempfile.mkstemp(dir=path.parent, prefix=".")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                Path(beside).replace(path)
            except OSError:
                Path(beside).unlink(missing_ok=True)
                raise
            flush(path.parent)

    def get(self, name: str) -> bytes:
        """The bytes of ``name``; KeyError when there is none."""
        try:
            return self._path(name).read_bytes()
        except FileNotFoundError:
            raise KeyError(name) from None

    def names(self, prefix: str) -> list[str]:
        """All names below ``prefix``, sorted; nothing that is still being written."""
        start = self._path(prefix)
        found = (path.relative_to(self._folder) for path in start.rglob("*") if path.is_file())
        return sorted(
            str(PurePosixPath(path))
            for path in found
            if not any(part.startswith(".") for part in path.parts)
        )

    def folders(self) -> list[str]:
        """Names of the topmost folders, sorted: the jobs that have left something."""
        found = (path.name for path in self._folder.iterdir() if path.is_dir())
        return sorted(name for name in found if not name.startswith("."))

    def inside(self, folder: str) -> list[str]:
        """Names of all that is directly in a folder, what a killed worker had begun too."""
        try:
            return sorted(path.name for path in self._path(folder).iterdir())
        except FileNotFoundError:
            return []

    def delete(self, prefix: str) -> None:
        """Remove one file, or everything below a folder."""
        path = self._path(prefix)
        if not path.is_dir():
            path.unlink(missing_ok=True)
            return
        # Out of sight first: who still writes there finds nothing, and cannot keep it from going.
        beside = tempfile.mkdtemp(dir=path.parent, prefix=_DELETED)
        with suppress(FileNotFoundError):  # somebody else was first
            path.rename(beside)
        for deleted in path.parent.glob(f"{_DELETED}*"):  # one may have been killed at it
            shutil.rmtree(deleted, ignore_errors=True)

    def _path(self, name: str) -> Path:
        path = (self._folder / name).absolute()
        if ".." in PurePosixPath(name).parts or not path.is_relative_to(self._folder):
            raise ValueError("an artifact's name may not leave the store")
        return path
