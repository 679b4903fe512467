"""Sealed records of studies: what leads back to the patient, useless without the key.

Envelope encryption. Every study has a random data key; its records are sealed with it (AES-256-GCM,
NIST SP 800-38D, 96-bit random nonces); the data key is sealed with a key-encryption key that has a
name. So keys rotate without touching records (:meth:`Vault.rewrap`), and a study is forgotten for
good by destroying its data key (:meth:`Vault.shred`), in every copy of its records.

The associated data binds tenant, pseudonymous study, record type, version and key name: a record
put in the place of another one does not open.

A *blind index* finds the studies of an original identifier: the name of its folder is an HMAC of
the identifier, under a key that is itself sealed. Without that key it cannot be guessed, and with
it nothing has to be opened.

Layout of a record store. Nothing in it is an original identifier::

    STUDY/key                 name of the key-encryption key, its check value, sealed data key
    STUDY/RECORD_TYPE         length, nonce, sealed record
    STUDY/destroyed           when the study was shredded: nothing else is left of it
    index-HMAC/STUDY          empty and sealed: the identifier behind HMAC is one of STUDY's
    tenant.TENANT/...         a study of the vault's own: the index key is derived from its data key
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from anonymizer.errors import (
    CrosswalkMissing,
    RecordAltered,
    RecordTruncated,
    StudyDestroyed,
    VaultError,
    WrongKey,
)
from anonymizer.keys import KeyEncryptionKeys, Keyring, derived_key
from anonymizer.records import FolderRecords, RecordStore, checked_name

__all__ = ["FolderRecords", "Keyring", "MAX_RECORD_BYTES", "RecordStore", "Vault"]

VERSION = 2
_RECORD, _KEY = b"SNV2", b"SNK2"
_VERSION_1 = b"SNV1"
_NONCE_BYTES, _TAG_BYTES, _CHECK_BYTES, _DATA_KEY_BYTES = 12, 16, 8, 32
_LENGTH = struct.Struct("<Q")
_KEY_RECORD, _TOMBSTONE = "key", "destroyed"
_STUDY = re.compile(r"[0-9.]+")
_INDEX = "index-"
MAX_RECORD_BYTES = 1 << 30


@dataclass(frozen=True)
class Vault:
    """Seals and opens the records of studies. One tenant sees nothing of another's."""

    records: RecordStore = field(repr=False)
    keyring: KeyEncryptionKeys
    tenant: str = "default"

    # -- records -----------------------------------------------------------------------------

    def seal(self, study: str, record_type: str, data: bytes) -> None:
        """Keep ``data`` sealed as the ``record_type`` of ``study``, replacing what was there.

        ``study`` is the pseudonymous Study Instance UID. Both names stay readable.

        Raises
        ------
        StudyDestroyed
            The study was shredded, and is not taken in again.
        """
        packed = zlib.compress(data, 6)
        associated = self._bound(study, _callers(record_type))
        with self.records.lock(study):
            sealed = _seal(self._data_key_to_seal_with(study), packed, associated)
            self.records.write(study, record_type, _RECORD + _LENGTH.pack(len(sealed)) + sealed)

    def seal_once(self, study: str, kind: str, data: bytes) -> str:
        """Keep ``data`` under a name made of ``kind`` and the data itself; the name.

        What is there already is not written again. The name is a keyed hash: it tells nobody who
        guesses the data that the guess is right.
        """
        with self.records.lock(study):
            data_key = self._data_key_to_seal_with(study)
        digest = _keyed_hash(derived_key(data_key, b"segnode record name v2"), kind, data)
        name = f"{kind}-{digest}"
        try:
            there = self.open(study, name)
        except (CrosswalkMissing, VaultError):  # sealed again, whatever is wrong with it
            there = None
        if there != data:
            self.seal(study, name, data)
        return name

    def open(self, study: str, record_type: str) -> bytes:
        """What was sealed.

        Raises
        ------
        CrosswalkMissing
            There is no such record.
        StudyDestroyed
            The study was shredded.
        RecordAltered, RecordTruncated
            The record or its key is not as it was written here.
        KeyMissing, WrongKey
            The key-encryption key is not here, or another one has its name.
        """
        _callers(record_type)
        self._refuse_destroyed(study)
        sealed = self.records.read(study, record_type)
        data_key = self._data_key(study)
        if sealed is None or data_key is None:
            raise CrosswalkMissing(f"The vault holds no {record_type!r} record for this study")
        what = f"vault record {record_type!r}"
        start = len(_RECORD) + _LENGTH.size
        _refuse_other_form(sealed, _RECORD, what)
        if len(sealed) < start or _LENGTH.unpack_from(sealed, 4)[0] != len(sealed) - start:
            raise RecordTruncated(f"The {what} has not the length that it was written with")
        opened = _open(data_key, sealed[start:], self._bound(study, record_type), what)
        inflater = zlib.decompressobj()
        data = inflater.decompress(opened, MAX_RECORD_BYTES)
        if not inflater.eof:
            raise VaultError(f"The {what} is too large")
        return data

    def names(self, study: str) -> list[str]:
        """Types of the records of ``study``, in order."""
        own = (_KEY_RECORD, _TOMBSTONE)
        return [name for name in self.records.names(study) if name not in own]

    def delete(self, study: str, record_type: str) -> None:
        """Remove one record, if it is there."""
        self.records.delete(study, _callers(record_type))

    # -- studies -----------------------------------------------------------------------------

    @property
    def own(self) -> str:
        """The study under which the vault's user keeps what belongs to no study."""
        return f"tenant.{self.tenant}"

    def studies(self) -> list[str]:
        """Every pseudonymous study, in order, also the destroyed ones."""
        return [study for study in self.records.studies() if self.knows(study)]

    def knows(self, study: str) -> bool:
        """Whether there is anything under this pseudonymous study, if only a tombstone."""
        return bool(_STUDY.fullmatch(study)) and bool(self.records.names(study))

    def destroyed(self, study: str) -> str | None:
        """When the study was shredded (ISO 8601, UTC); None if it was not."""
        tombstone = self.records.read(study, _TOMBSTONE)
        return None if tombstone is None else tombstone.decode("latin-1").strip()

    def shred(self, study: str) -> None:
        """Destroy the study's data key, then its records and its entries of the index.

        Nothing leads back any more. A tombstone stays, so that the study is refused and not
        silently begun again. What a crash interrupted is finished by shredding again.
        """
        with self.records.lock(study):
            if self.destroyed(study) is None:
                now = datetime.now(UTC).isoformat(timespec="seconds")
                self.records.write(study, _TOMBSTONE, now.encode("ascii") + b"\n")
            self.records.delete(study, _KEY_RECORD)
            self.records.clear(study, keep=_TOMBSTONE)
        for entry in self.records.studies():
            if entry.startswith(_INDEX):
                self.records.delete(entry, study)

    # -- the blind index ---------------------------------------------------------------------

    def remember(self, study: str, keyword: str, value: str) -> None:
        """Let :meth:`find` find the study by the original ``value`` of attribute ``keyword``.

        Raises
        ------
        StudyDestroyed
            The study was shredded.
        """
        value = value.strip()
        if not value:
            return
        entry = self._index_entry(keyword, value)
        with self.records.lock(study):
            self._refuse_destroyed(study)
            try:
                self._check_entry(entry, study)
            except RecordAltered:  # not there yet, or to be written again
                sealed = _seal(self._index_key(), b"", self._bound(study, entry))
                self.records.write(entry, study, sealed)

    def find(self, keyword: str, value: str) -> list[str]:
        """The pseudonymous studies whose original attribute ``keyword`` has this ``value``.

        Raises
        ------
        RecordAltered
            An entry of the index was not written by this vault.
        """
        if self.records.read(self.own, _KEY_RECORD) is None or not value.strip():
            return []
        entry = self._index_entry(keyword, value.strip())
        found = self.records.names(entry)
        for study in found:
            self._check_entry(entry, study)
        return found

    def _check_entry(self, entry: str, study: str) -> None:
        sealed = self.records.read(entry, study) or b""
        _open(self._index_key(), sealed, self._bound(study, entry), "entry of the vault's index")

    def _index_entry(self, keyword: str, value: str) -> str:
        return _INDEX + _keyed_hash(self._index_key(), keyword, value.encode("utf-8"))

    def _index_key(self) -> bytes:
        with self.records.lock(self.own):
            return derived_key(self._data_key_to_seal_with(self.own), b"segnode blind index v2")

    # -- keys --------------------------------------------------------------------------------

    def sealed_with(self, study: str) -> str | None:
        """Name of the key-encryption key that a study needs; None if it has no data key."""
        wrapped = self.records.read(study, _KEY_RECORD)
        return None if wrapped is None else _parts(wrapped)[0]

    def keyed(self) -> list[str]:
        """Everything that has a data key, in order: the studies, and the vault's own."""
        return [study for study in self.records.studies() if not study.startswith(_INDEX)]

    def rewrap(self, studies: Iterable[str] | None = None) -> int:
        """Seal data keys under the current key-encryption key; how many were not yet.

        Only the key records are written, each at once or not at all. When it is done for all
        studies (the default), the old key-encryption key is not needed any more.
        """
        count = 0
        current = self.keyring.current
        for study in self.keyed() if studies is None else studies:
            with self.records.lock(study):
                if self.sealed_with(study) in (None, current):
                    continue
                data_key = self._data_key(study)
                if data_key is not None:
                    self.records.write(study, _KEY_RECORD, self._wrapped(study, data_key, current))
                    count += 1
        return count

    def _refuse_destroyed(self, study: str) -> None:
        when = self.destroyed(study)
        if when is not None:
            raise StudyDestroyed(
                f"The key of this study was destroyed on {when[:10]}: nothing leads back to its "
                "patient any more"
            )

    def _data_key_to_seal_with(self, study: str) -> bytes:
        """The data key of a study, a new one if it has none; the study is locked."""
        self._refuse_destroyed(study)
        data_key = self._data_key(study)
        if data_key is None:
            data_key = secrets.token_bytes(_DATA_KEY_BYTES)
            wrapped = self._wrapped(study, data_key, self.keyring.current)
            self.records.write(study, _KEY_RECORD, wrapped)
        return data_key

    def _data_key(self, study: str) -> bytes | None:
        wrapped = self.records.read(study, _KEY_RECORD)
        if wrapped is None:
            return None
        name, check, sealed = _parts(wrapped)
        key = self.keyring.key(name)
        if not hmac.compare_digest(check, _check_value(key)):
            raise WrongKey(
                f"The key-encryption key {name!r} is not the one that sealed this study's data key"
            )
        bound = self._bound(study, _KEY_RECORD, name)
        return _open(key, sealed, bound, "key record of the study")

    def _wrapped(self, study: str, data_key: bytes, name: str) -> bytes:
        key = self.keyring.key(name)
        sealed = _seal(key, data_key, self._bound(study, _KEY_RECORD, name))
        return _KEY + bytes([len(name)]) + name.encode("ascii") + _check_value(key) + sealed

    def _bound(self, study: str, record_type: str, kek: str = "") -> bytes:
        """Associated data: each part with its length, so that no two lists look the same.

        A record's own data does not name the key-encryption key, else rotating it would mean
        sealing every record again; the key record that it needs does.
        """
        parts = [self.tenant, checked_name(study), record_type, str(VERSION), kek]
        encoded = [part.encode("utf-8") for part in parts]
        return b"".join(struct.pack("<L", len(part)) + part for part in encoded)


def _callers(record_type: str) -> str:
    """``record_type`` if it is one that a caller may use."""
    if checked_name(record_type) in (_KEY_RECORD, _TOMBSTONE):
        raise VaultError("This record type is the vault's own")
    return record_type


def _seal(key: bytes, data: bytes, associated: bytes) -> bytes:
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, data, associated)


def _open(key: bytes, sealed: bytes, associated: bytes, what: str) -> bytes:
    nonce, ciphertext = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
    try:
        return AESGCM(key).decrypt(nonce, ciphertext, associated)
    except (InvalidTag, ValueError):
        raise RecordAltered(
            f"The {what} was altered, or is not the one that was sealed in this place"
        ) from None


def _parts(wrapped: bytes) -> tuple[str, bytes, bytes]:
    """Name and check value of the key-encryption key, and the sealed data key."""
    start = len(_KEY) + 1
    _refuse_other_form(wrapped, _KEY, "key record of the study")
    size = wrapped[len(_KEY)] if len(wrapped) >= start else 0
    end = start + size + _CHECK_BYTES
    if len(wrapped) != end + _NONCE_BYTES + _DATA_KEY_BYTES + _TAG_BYTES:
        raise RecordTruncated(
            "The key record of the study has not the length that it was written with"
        )
    try:
        name = checked_name(wrapped[start : start + size].decode("ascii"))
    except (UnicodeDecodeError, VaultError):
        raise RecordAltered("The key record of the study was altered") from None
    return name, wrapped[start + size : end], wrapped[end:]


def _refuse_other_form(data: bytes, form: bytes, what: str) -> None:
    if data.startswith(_VERSION_1):
        raise VaultError(
            f"The {what} was sealed by an earlier version, which this one does not read",
            remedy="Remove the study's folder from the vault and process its series again.",
        )
    if not data.startswith(form[: len(data)]):
        raise RecordAltered(f"The {what} has an unknown form")


def _check_value(key: bytes) -> bytes:
    """Tells a key-encryption key from another one of the same name; says nothing else of it."""
    return derived_key(key, b"segnode key check v2", length=_CHECK_BYTES)


def _keyed_hash(key: bytes, kind: str, data: bytes) -> str:
    """HMAC-SHA256 of a kind and data, 32 hexadecimal digits."""
    return hmac.new(key, kind.encode("ascii") + b"\0" + data, hashlib.sha256).hexdigest()[:32]
