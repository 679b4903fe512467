"""`segnode models pack`: a model's folder as one file, the same bytes wherever it is packed."""

from __future__ import annotations

import hashlib
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

from node.errors import ModelFault
from node.manifest import CommandManifest, read_manifest
from node.runtimes.network import verified_weights

_LEFT_OUT = frozenset({"__pycache__"})


@dataclass(frozen=True)
class Archive:
    """What was written, and the SHA-256 to publish beside it."""

    path: Path
    sha256: str
    files: int


def pack_model(folder: Path, out: Path) -> Archive:
    """Write ``out/NAME-VERSION.tar``: sorted, without times or owners, so it packs reproducibly.

    It is not compressed, because weights hardly shrink and compressors differ.

    Raises
    ------
    ModelFault
        The manifest is wrong, the weights are not the manifest's, or a link is in the folder.
    """
    manifest = read_manifest(folder)
    if not isinstance(manifest, CommandManifest):
        verified_weights(folder, manifest)
    buffer = io.BytesIO()
    paths = _paths(folder)
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path in paths:
            data = path.read_bytes()
            member = tarfile.TarInfo(f"{folder.name}/{path.relative_to(folder).as_posix()}")
            member.size = len(data)
            member.mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
            archive.addfile(member, io.BytesIO(data))
    packed = buffer.getvalue()
    out.mkdir(parents=True, exist_ok=True)
    written = out / f"{manifest.name}-{manifest.version}.tar"
    written.write_bytes(packed)
    return Archive(written, hashlib.sha256(packed).hexdigest(), len(paths))


def _paths(folder: Path) -> list[Path]:
    found = []
    for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix()):
        parts = path.relative_to(folder).parts
        if any(part.startswith(".") or part in _LEFT_OUT for part in parts):
            continue
        if path.is_symlink():
            raise ModelFault(
                f"Model {folder.name}: {path.name} is a link",
                remedy="Put the file itself there: a link leads elsewhere on another machine.",
            )
        if path.is_file():
            found.append(path)
    return found
