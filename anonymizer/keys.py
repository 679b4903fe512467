"""Secrets of 32 bytes: the one behind the pseudonyms, and the ones that seal the vault.

The pseudonym secret decides every pseudonym: whoever holds it and guesses an identifier can test
the guess, and changing it breaks the link between a patient's studies. So it belongs to a numbered
*epoch* (:mod:`anonymizer.epochs`), and it is kept apart from the vault's key-encryption keys.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from anonymizer.disk import flush_folder
from anonymizer.errors import KeyFileError, KeyMissing, VaultError

SECRET_BYTES = 32
_KEY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class PseudonymKeys:
    """One key per kind of pseudonym, so that knowing one says nothing about another."""

    uid: bytes = field(repr=False)
    patient_id: bytes = field(repr=False)
    date_shift: bytes = field(repr=False)
    marks: bytes = field(repr=False)
    """Of keyed hashes that stand for no identifier: see :meth:`keyed_hash`."""
    epoch: int = 1
    """Number of the secret: pseudonyms of two epochs have nothing in common."""

    @classmethod
    def from_secret(cls, secret: bytes, epoch: int = 1) -> PseudonymKeys:
        """Keys derived from a 32-byte secret by HKDF-SHA256 (RFC 5869), one label each."""
        if len(secret) != SECRET_BYTES:
            raise KeyFileError(f"The pseudonym secret has {len(secret)} bytes, expected 32")

        def derive(label: bytes) -> bytes:
            return derived_key(secret, b"segnode pseudonym v1 " + label)

        return cls(
            derive(b"uid"), derive(b"patient id"), derive(b"date shift"), derive(b"marks"), epoch
        )

    def keyed_hash(self, kind: str, data: bytes) -> str:
        """HMAC-SHA256, hexadecimal: the same for the same data, and no guess can be tested by it.

        For what is derived from a patient's data and read by who must not know the patient.
        ``kind`` says what of, so that no two kinds can be compared.
        """
        return hmac.new(self.marks, kind.encode() + b"\0" + data, hashlib.sha256).hexdigest()

    @property
    def check_value(self) -> bytes:
        """16 bytes that tell these keys from others and say nothing else of them."""
        together = self.uid + self.patient_id + self.date_shift
        return derived_key(together, b"segnode pseudonym check v1", length=16)


class KeyEncryptionKeys(Protocol):
    """The keys that seal the data keys of a vault, by name."""

    @property
    def current(self) -> str:
        """Name of the key that new data keys are sealed with."""

    def names(self) -> list[str]:
        """Names of all keys, the oldest first."""

    def key(self, name: str) -> bytes:
        """The 32 bytes of one; :class:`~anonymizer.errors.KeyMissing` if it is not here."""


@dataclass(frozen=True)
class Keyring:
    """Keys in memory; new studies use ``current``, old ones keep opening."""

    current: str
    keys: Mapping[str, bytes] = field(repr=False)

    def __post_init__(self) -> None:
        """Check that every key is 32 bytes under a plain name and that ``current`` is one."""
        if self.current not in self.keys:
            raise VaultError("The current key-encryption key is not in the key ring")
        for name, key in self.keys.items():
            if not _KEY_NAME.fullmatch(name) or len(key) != SECRET_BYTES:
                raise VaultError("A key-encryption key needs a plain name and 32 bytes")

    def names(self) -> list[str]:
        """Names of all keys, as they were given."""
        return list(self.keys)

    def key(self, name: str) -> bytes:
        """The 32 bytes of one; :class:`~anonymizer.errors.KeyMissing` if it is not here."""
        if name not in self.keys:
            raise _missing(name)
        return self.keys[name]


@dataclass(frozen=True)
class NumberedKeys:
    """Keys of one purpose: files ``STEM``, ``STEM.2``, ``STEM.3`` … of a folder, or given values.

    The name is the file's. The highest number is current. Files are read when they are needed, so
    a key that is added, or loses its mode, is noticed by what runs.
    """

    folder: Path
    stem: str
    given: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Name → 64 hexadecimal digits: keys that are in no file, such as from the environment."""

    @property
    def current(self) -> str:
        """Name of the key with the highest number.

        Raises
        ------
        KeyMissing
            There is no key at all.
        """
        names = self.names()
        if not names:
            raise _missing(self.stem)
        return names[-1]

    def names(self) -> list[str]:
        """Names of all keys, by number."""
        try:
            files = [entry.name for entry in self.folder.iterdir()]
        except FileNotFoundError:
            files = []
        names = {name for name in (*files, *self.given) if self.owns(name)}
        return sorted(names, key=self.number)

    def key(self, name: str) -> bytes:
        """The 32 bytes of one.

        Raises
        ------
        KeyMissing
            There is no such key.
        KeyFileError
            It is malformed, others may read its file, or file and given value differ.
        """
        if name not in self.names():
            raise _missing(name)
        given = _from_hexadecimal(self.given[name], name) if name in self.given else None
        if not (self.folder / name).exists() and given is not None:
            return given
        key = read_key_file(self.folder / name)
        if given not in (None, key):
            raise KeyFileError(
                f"Key {name} is given twice, and its file has another value",
                remedy="Remove the wrong one.",
            )
        return key

    def is_in_file(self, name: str) -> bool:
        """Whether the key is a file; otherwise its value was given."""
        return (self.folder / name).exists()

    def number(self, name: str) -> int:
        """The number of a name: 1 for the stem alone."""
        return int(name[len(self.stem) + 1 :] or 1)

    def named(self, number: int) -> str:
        """The name of a number."""
        return self.stem if number == 1 else f"{self.stem}.{number}"

    def create(self, number: int) -> str:
        """A new random key under ``number``; its name. FileExistsError if there is one."""
        name = self.named(number)
        create_key_file(self.folder / name)
        return name

    def owns(self, name: str) -> bool:
        """Whether a name has the form of these keys' names."""
        return re.fullmatch(rf"{re.escape(self.stem)}(\.([2-9]|[1-9]\d+))?", name) is not None


def derived_key(key: bytes, label: bytes, length: int = SECRET_BYTES) -> bytes:
    """Another key out of ``key``, by HKDF-SHA256 (RFC 5869), one for each label."""
    return HKDF(hashes.SHA256(), length=length, salt=None, info=label).derive(key)


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
            raise KeyFileError(
                f"Key file {path.name} has mode {mode:04o}: others may use it",
                remedy=f"chmod 600 {path}",
            )
        text = file.read(4096)
    return _from_hexadecimal(text.decode("latin-1"), f"file {path.name}")


def create_key_file(path: Path) -> bytes:
    """A new random secret, written to ``path`` with mode 0600 and flushed to the disk.

    Raises
    ------
    FileExistsError
        There is a file already: a secret is never overwritten.
    KeyFileError
        The folder cannot be written.
    """
    secret = random_secret()
    # Written beside and linked: a crash leaves no half secret under the name.
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secret.hex() + "\n")
            file.flush()
            os.fsync(file.fileno())
        path.hardlink_to(beside)
        flush_folder(path.parent)
    except FileExistsError:
        raise
    except OSError as error:
        raise KeyFileError(
            f"Key file {path.name} cannot be made: {error.strerror}",
            remedy="Make it where the secrets come from: `openssl rand -hex 32`, mode 600.",
        ) from None
    finally:
        beside.unlink(missing_ok=True)
    return secret


def read_or_create_key_file(path: Path) -> bytes:
    """The secret in ``path``; made there if the file does not exist."""
    try:
        return create_key_file(path)
    except FileExistsError:
        return read_key_file(path)


def _from_hexadecimal(text: str, subject: str) -> bytes:
    try:
        secret = bytes.fromhex(text.strip())
    except ValueError:
        raise KeyFileError(
            f"Key {subject} is not hexadecimal", remedy="Put the original back from its backup."
        ) from None
    if len(secret) != SECRET_BYTES:
        raise KeyFileError(
            f"Key {subject} holds {len(secret)} bytes, expected 32",
            remedy="Put the original back from its backup.",
        )
    return secret


def _missing(name: str) -> KeyMissing:
    return KeyMissing(f"The key {name!r} is not here")
