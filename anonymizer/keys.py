"""The keys behind the pseudonyms: one 32-byte secret, one derived key per purpose.

The secret decides every pseudonym: whoever holds it and guesses an identifier can test the guess,
and changing it breaks the link between a patient's studies. It is kept apart from the vault's key.
"""

from __future__ import annotations

import os
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from anonymizer.errors import KeyFileError

SECRET_BYTES = 32


@dataclass(frozen=True)
class PseudonymKeys:
    """One key per kind of pseudonym, so that knowing one says nothing about another."""

    uid: bytes = field(repr=False)
    patient_id: bytes = field(repr=False)
    date_shift: bytes = field(repr=False)

    @classmethod
    def from_secret(cls, secret: bytes) -> PseudonymKeys:
        """Keys derived from a 32-byte secret by HKDF-SHA256 (RFC 5869), one label each."""
        if len(secret) != SECRET_BYTES:
            raise KeyFileError(f"The pseudonym secret has {len(secret)} bytes, expected 32")

        def derive(label: bytes) -> bytes:
            info = b"segnode pseudonym v1 " + label
            return HKDF(hashes.SHA256(), length=32, salt=None, info=info).derive(secret)

        return cls(derive(b"uid"), derive(b"patient id"), derive(b"date shift"))


def random_secret() -> bytes:
    """A secret that is written nowhere: what it makes can never be made again."""
    return secrets.token_bytes(SECRET_BYTES)


def read_key_file(path: Path) -> bytes:
    """The 32 bytes written as 64 hexadecimal digits in ``path``.

    Raises
    ------
    KeyFileError
        The file is missing, malformed, or group or others may read or write it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise KeyFileError(f"Key file {path.name}: {error.strerror}") from None
    with os.fdopen(descriptor, "rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if mode & 0o077:
            raise KeyFileError(f"Key file {path.name} has mode {mode:04o}: others may use it")
        text = file.read(4096)
    try:
        secret = bytes.fromhex(text.decode("ascii").strip())
    except ValueError:
        raise KeyFileError(f"Key file {path.name} is not hexadecimal") from None
    if len(secret) != SECRET_BYTES:
        raise KeyFileError(f"Key file {path.name} holds {len(secret)} bytes, expected 32")
    return secret


def create_key_file(path: Path) -> bytes:
    """A new random secret, written to ``path`` with mode 0600 and flushed to the disk.

    Raises
    ------
    FileExistsError
        There is a file already: a secret is never overwritten.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    secret = random_secret()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secret.hex() + "\n")
        file.flush()
        os.fsync(file.fileno())
    return secret


def read_or_create_key_file(path: Path) -> bytes:
    """The secret in ``path``; made there if the file does not exist."""
    try:
        return create_key_file(path)
    except FileExistsError:
        return read_key_file(path)
