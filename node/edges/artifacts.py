"""The artifact store: de-identified working data in a local folder."""

from __future__ import annotations

import os
import stat
from contextlib import AbstractContextManager, suppress
from pathlib import Path, PurePosixPath

from node.edges import beneath
from node.edges.bundles import (
    FolderBundle,
    FolderBundleWriter,
    bundles_below,
    disk_errors_named,
    flush,
    writing,
)

_DELETED = ".deleted-"
#: A single file is a picture, or what a person has to look at.
_MOST_BYTES = 2**26


class FolderArtifacts:
    """``node.ports.Artifacts`` in a folder. A name is a relative path with forward slashes.

    Others write there too, so no link is followed: what is behind one is not there, and deleting
    one removes the link.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o750)

    def writing(self, folder: str) -> AbstractContextManager[FolderBundleWriter]:
        """A new bundle below ``folder``, there once the block has ended without an error."""
        return writing(self._folder, folder)

    def bundle(self, folder: str, digest: str) -> FolderBundle:
        """The bundle of that digest below ``folder``; DamagedArtifact if it is not there."""
        return FolderBundle.opened(self._folder, folder, digest)

    def bundles(self, folder: str) -> list[str]:
        """Digests of all bundles below ``folder``."""
        return bundles_below(self._folder, folder)

    def put(self, name: str, data: bytes) -> None:
        """Write beside, flush, then rename: a reader sees all of it or nothing, after any end."""
        path, beside = beneath.checked(name), beneath.unused_name()
        with (
            disk_errors_named(),
            beneath.folder_at(self._folder, str(path.parent), make=True) as folder,
        ):
            try:
                beneath.write(folder, beside, data)
                flush(self._folder, str(path.parent / beside))
                beneath.move(folder, beside, path.name)
            except OSError:
                beneath.remove(folder, beside)
                raise
            os.fsync(folder)

    def get(self, name: str) -> bytes:
        """The bytes of ``name``; KeyError when there is none, or more than anything here has."""
        try:
            return beneath.read(self._folder, name, _MOST_BYTES)
        except OSError as error:
            if beneath.is_not_there(error):
                raise KeyError(name) from None
            raise

    def names(self, prefix: str) -> list[str]:
        """All names below ``prefix``, sorted; nothing that is still being written."""
        found: list[PurePosixPath] = []
        with beneath.if_there(), beneath.folder_at(self._folder, prefix) as at:
            for place, _, names, folder in os.fwalk(".", dir_fd=at):
                found += [PurePosixPath(place, name) for name in names if _is_file(name, folder)]
        return sorted(
            str(PurePosixPath(prefix) / path)
            for path in found
            if not any(part.startswith(".") for part in path.parts)
        )

    def folders(self) -> list[str]:
        """Names of the topmost folders, sorted: the jobs that have left something.

        A link is one too, for it is deleted as a folder of no job is.
        """
        with os.scandir(self._folder) as entries:
            found = [entry.name for entry in entries if entry.is_dir() or entry.is_symlink()]
        return sorted(name for name in found if not name.startswith("."))

    def inside(self, folder: str) -> list[str]:
        """Names of all that is directly in a folder, what a killed worker had begun too."""
        with beneath.if_there(), beneath.folder_at(self._folder, folder) as at:
            return beneath.names_in(at)
        return []

    def delete(self, prefix: str) -> None:
        """Remove one file or link, or everything below a folder."""
        path = beneath.checked(prefix)
        with beneath.if_there(), beneath.folder_at(self._folder, str(path.parent)) as folder:
            # Out of sight first: who still writes there finds nothing, and cannot keep it from
            # going.
            with suppress(FileNotFoundError):  # somebody else was first
                beneath.move(folder, path.name, beneath.unused_name(_DELETED))
            for name in beneath.names_in(folder):  # one may have been killed at it
                if name.startswith(_DELETED):
                    beneath.remove(folder, name)


def _is_file(name: str, folder: int) -> bool:
    with suppress(FileNotFoundError):
        return stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    return False
