"""Sealed records of studies: what leads back to the patient, useless without the key.

Envelope encryption. Every study has a random data key; its records are sealed with it (AES-256-GCM,
NIST SP 800-38D, 96-bit random nonces); the data key is sealed with a key-encryption key that has a
name. So keys rotate without touching records (:meth:`Vault.rewrap`), and a study is forgotten for
good by destroying its data key (:meth:`Vault.shred`), in every copy of its records.

The associated data binds tenant, pseudonymous study, record type, version and key name: a record
put in the place of another one does not open.

Layout of a record store, all names pseudonymous::

    STUDY/key             name of the key-encryption key, nonce, sealed data key
    STUDY/RECORD_TYPE     nonce, sealed record
"""

from __future__ import annotations

import os
import re
import secrets
import struct
import tempfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from anonymizer.errors import CrosswalkMissing, VaultError

VERSION = 1
_MAGIC = b"SNV1"
_NONCE_BYTES = 12
_KEY_RECORD = "key"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
MAX_RECORD_BYTES = 1 << 30


class RecordStore(Protocol):
    """Where sealed bytes lie: a folder, a database table, a bucket."""

    def read(self, study: str, name: str) -> bytes | None:
        """The bytes, or None if there are none."""

    def write(self, study: str, name: str, data: bytes) -> None:
        """Store durably, replacing what was there, all or nothing."""

    def create(self, study: str, name: str, data: bytes) -> bool:
        """Store durably if there is nothing yet; whether it did."""

    def names(self, study: str) -> list[str]:
        """Names of the records of a study, in order; empty if the study is unknown."""

    def studies(self) -> list[str]:
        """Names of all studies, in order."""

    def delete(self, study: str, name: str) -> None:
        """Remove one record, if it is there."""


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
        temporary = self._temporary(file, data)
        temporary.replace(file)
        _flush_folder(file.parent)

    def create(self, study: str, name: str, data: bytes) -> bool:
        """Like :meth:`write`, but the first one wins, also between processes."""
        file = self._file(study, name)
        temporary = self._temporary(file, data)
        try:
            file.hardlink_to(temporary)
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        _flush_folder(file.parent)
        return True

    def names(self, study: str) -> list[str]:
        """Names of the records of a study, in order."""
        return _listed(self.path / _checked(study))

    def studies(self) -> list[str]:
        """Names of all studies, in order."""
        return _listed(self.path)

    def delete(self, study: str, name: str) -> None:
        """Overwrite with zeros, then unlink; the folder goes with its last record."""
        file = self._file(study, name)
        try:
            size = file.stat().st_size
        except FileNotFoundError:
            return
        with file.open("r+b") as stream:
            stream.write(bytes(size))
            stream.flush()
            os.fsync(stream.fileno())
        file.unlink()
        _flush_folder(file.parent)
        if not any(file.parent.iterdir()):
            file.parent.rmdir()

    def _file(self, study: str, name: str) -> Path:
        return self.path / _checked(study) / _checked(name)

    def _temporary(self, file: Path, data: bytes) -> Path:
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        file.parent.mkdir(mode=0o700, exist_ok=True)
        # mkstemp makes the file 0600; its name begins with a dot, so it is not listed.
        descriptor, name = tempfile.mkstemp(prefix=".", dir=file.parent)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        return Path(name)


@dataclass(frozen=True)
class Keyring:
    """Key-encryption keys by name; new studies use ``current``, old ones keep opening."""

    current: str
    keys: Mapping[str, bytes] = field(repr=False)

    def __post_init__(self) -> None:
        """Check that every key is 32 bytes under a plain name and that ``current`` is one."""
        if self.current not in self.keys:
            raise VaultError("The current key-encryption key is not in the key ring")
        for name, key in self.keys.items():
            if not _NAME.fullmatch(name) or len(key) != 32:
                raise VaultError("A key-encryption key needs a plain name and 32 bytes")


@dataclass(frozen=True)
class Vault:
    """Seals and opens the records of studies. One tenant sees nothing of another's."""

    records: RecordStore = field(repr=False)
    keyring: Keyring
    tenant: str = "default"

    def seal(self, study: str, record_type: str, data: bytes) -> None:
        """Keep ``data`` sealed as the ``record_type`` of ``study``, replacing what was there.

        ``study`` is the pseudonymous Study Instance UID. Both names stay readable.
        """
        if _checked(record_type) == _KEY_RECORD:
            raise VaultError("This record type is the vault's own")
        data_key = self._data_key(study) or self._new_data_key(study)
        sealed = _seal(data_key, zlib.compress(data, 6), self._bound(study, record_type))
        self.records.write(study, record_type, _MAGIC + sealed)

    def open(self, study: str, record_type: str) -> bytes:
        """What was sealed.

        Raises
        ------
        CrosswalkMissing
            There is no such record, or the study was shredded.
        VaultError
            The record or its key was altered, or the key-encryption key is not here.
        """
        if _checked(record_type) == _KEY_RECORD:
            raise VaultError("This record type is the vault's own")
        sealed = self.records.read(study, record_type)
        data_key = self._data_key(study)
        if sealed is None or data_key is None:
            raise CrosswalkMissing("The vault holds no such record for this study")
        if not sealed.startswith(_MAGIC):
            raise VaultError("A vault record has an unknown form")
        opened = _open(data_key, sealed[len(_MAGIC) :], self._bound(study, record_type))
        try:
            inflater = zlib.decompressobj()
            data = inflater.decompress(opened, MAX_RECORD_BYTES)
        except zlib.error:
            raise VaultError("A vault record cannot be unpacked") from None
        if not inflater.eof:
            raise VaultError("A vault record is cut short or too large")
        return data

    def names(self, study: str) -> list[str]:
        """Types of the records of ``study``, in order."""
        return [name for name in self.records.names(study) if name != _KEY_RECORD]

    def delete(self, study: str, record_type: str) -> None:
        """Remove one record, if it is there."""
        if _checked(record_type) == _KEY_RECORD:
            raise VaultError("This record type is the vault's own; shred the study instead")
        self.records.delete(study, record_type)

    def shred(self, study: str) -> None:
        """Destroy the study's data key, then its records: nothing leads back any more."""
        self.records.delete(study, _KEY_RECORD)
        for name in self.records.names(study):
            self.records.delete(study, name)

    def rewrap(self, studies: Iterable[str] | None = None) -> int:
        """Seal data keys under the current key-encryption key; how many were not yet.

        Only the key records are written. When it is done for all studies (the default), the old
        key-encryption key may leave the key ring.
        """
        count = 0
        for study in self.records.studies() if studies is None else studies:
            wrapped = self.records.read(study, _KEY_RECORD)
            if wrapped is None or _kek_name(wrapped)[0] == self.keyring.current:
                continue
            data_key = self._data_key(study)
            if data_key is not None:
                self.records.write(study, _KEY_RECORD, self._wrapped(study, data_key))
                count += 1
        return count

    def _data_key(self, study: str) -> bytes | None:
        wrapped = self.records.read(study, _KEY_RECORD)
        if wrapped is None:
            return None
        name, sealed = _kek_name(wrapped)
        key = self.keyring.keys.get(name)
        if key is None:
            raise VaultError(f"The key-encryption key {name!r} is not in the key ring")
        return _open(key, sealed, self._bound(study, _KEY_RECORD, name))

    def _new_data_key(self, study: str) -> bytes:
        data_key = secrets.token_bytes(32)
        if self.records.create(study, _KEY_RECORD, self._wrapped(study, data_key)):
            return data_key
        existing = self._data_key(study)  # another process was first
        if existing is None:
            raise VaultError("The study was shredded while a record was being sealed")
        return existing

    def _wrapped(self, study: str, data_key: bytes) -> bytes:
        name = self.keyring.current
        sealed = _seal(self.keyring.keys[name], data_key, self._bound(study, _KEY_RECORD, name))
        return _MAGIC + bytes([len(name)]) + name.encode("ascii") + sealed

    def _bound(self, study: str, record_type: str, kek: str = "") -> bytes:
        """Associated data: each part with its length, so that no two lists look the same.

        A record's own data does not name the key-encryption key, else rotating it would mean
        sealing every record again; the key record that it needs does.
        """
        parts = [self.tenant, _checked(study), record_type, str(VERSION), kek]
        encoded = [part.encode("utf-8") for part in parts]
        return b"".join(struct.pack("<L", len(part)) + part for part in encoded)


def _seal(key: bytes, data: bytes, associated: bytes) -> bytes:
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, data, associated)


def _open(key: bytes, sealed: bytes, associated: bytes) -> bytes:
    nonce, ciphertext = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
    try:
        return AESGCM(key).decrypt(nonce, ciphertext, associated)
    except (InvalidTag, ValueError):
        raise VaultError("A vault record was altered, or is not the one that was sealed") from None


def _kek_name(wrapped: bytes) -> tuple[str, bytes]:
    """The key-encryption key's name and the sealed data key of a key record."""
    start = len(_MAGIC) + 1
    if not wrapped.startswith(_MAGIC) or len(wrapped) < start:
        raise VaultError("A key record of the vault has an unknown form")
    end = start + wrapped[len(_MAGIC)]
    try:
        return wrapped[start:end].decode("ascii"), wrapped[end:]
    except UnicodeDecodeError:
        raise VaultError("A key record of the vault was altered") from None


def _checked(name: str) -> str:
    """``name`` if it is plain enough for a file; a path or a hidden name never is."""
    if not _NAME.fullmatch(name):
        raise VaultError("A study or record type has characters that a name may not have")
    return name


def _listed(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    except FileNotFoundError:
        return []


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
