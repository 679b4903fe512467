"""Secrets live in files that only their owner can read, made at the first start."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from node.settings import BadSettings


def read_or_create(path: Path) -> str:
    """The secret in ``path``, as text; a new random one (hexadecimal) when there is no file.

    Raises
    ------
    BadSettings
        Others can read the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return read(path)
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_hex(32) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return read(path)


def read(path: Path) -> str:
    """The secret in ``path``.

    Raises
    ------
    BadSettings
        There is no such file, or others can read it.
    """
    try:
        mode = path.stat().st_mode
        secret = path.read_text().strip()
    except OSError as error:
        raise BadSettings(
            f"The secret file {path.name} cannot be read ({type(error).__name__})",
            remedy="`segnode up` makes missing secrets; run it as the owner of the secrets folder.",
        ) from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise BadSettings(
            f"The secret file {path} can be read by others", remedy=f"chmod 600 {path}"
        )
    return secret
