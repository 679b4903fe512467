"""Can a program run on this machine, and are its files the ones that the manifest names?"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from node.errors import ModelFault
from node.foreign import sandbox
from node.manifest import PLACEHOLDER, CommandManifest


def require_runnable(folder: Path, manifest: CommandManifest, *, hashes: bool = True) -> None:
    """Return if the program of a model folder can run here.

    Raises
    ------
    ModelFault
        With all of :func:`faults`.
    """
    found = list(faults(folder, manifest, hashes=hashes))
    if found:
        raise ModelFault(
            f"Model {manifest.name}: {'; '.join(found)}",
            remedy="Install what is missing on this machine, or correct model.toml.",
        )


def faults(folder: Path, manifest: CommandManifest, *, hashes: bool = True) -> Iterator[str]:
    """Why the program cannot run on this machine, one phrase for each reason.

    ``hashes`` tells whether to read its files, which may be gigabytes.
    """
    command = manifest.command
    known = {"model": str(folder.resolve()), "python": sys.executable}
    for line in (command.run, command.stop):
        program = filled(line[0], known) if line else ""
        if program and shutil.which(program) is None:
            yield f"there is no program {line[0]} on this machine"
    if command.sandbox and (reason := sandbox.why_not()):
        yield f"{reason} (or set sandbox = false)"
    if "nifti" in (command.reads, command.writes) and not importlib.util.find_spec("nibabel"):
        yield "nibabel is not installed (pip install 'segnode[foreign]')"
    for place in command.readable:
        if not Path(filled(place, known)).exists():
            yield f"readable: {place} is not there"
    for name, sha256 in command.files.items():
        path = folder / filled(name, known)
        if not path.exists():
            yield f"files: {name} is not there"
        elif hashes and sha256_of(path) != sha256:
            yield f"files: the SHA-256 of {name} is not the one in model.toml"


def sha256_of(path: Path) -> str:
    """Of a file, its own; of a folder, that of the ``sha256sum`` listing of all files below it.

    The same as ``cd FOLDER && find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum |
    sha256sum``, for names without a backslash or a line break.
    """
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    names = {os.fsencode(f"./{one.relative_to(path)}"): one for one in path.rglob("*")}
    listing = hashlib.sha256()
    for name in sorted(names):
        if names[name].is_file() and not names[name].is_symlink():
            listing.update(sha256_of(names[name]).encode() + b"  " + name + b"\n")
    return listing.hexdigest()


def filled(text: str, values: Mapping[str, str]) -> str:
    """``text`` with ``{name}`` replaced by its value; what has none stays."""
    return PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), text)
