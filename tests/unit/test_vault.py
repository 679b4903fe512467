"""The vault: what is sealed opens again, and only there, only with the key, only unaltered."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anonymizer import FolderRecords, Keyring, Vault
from anonymizer.errors import CrosswalkMissing, Quarantined, VaultError

STUDY, OTHER = "2.25.1001", "2.25.1002"
SECRET = b"Featherstone^Quillon " * 50


def keyring(*names: str) -> Keyring:
    """Keys that depend on their name; the last one is current."""
    return Keyring(names[-1], {name: name.encode().ljust(32, b"-") for name in names})


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    """An empty vault."""
    return Vault(FolderRecords(tmp_path / "vault"), keyring("2026"))


def files(vault: Vault) -> list[Path]:
    """All files of the vault's folder."""
    assert isinstance(vault.records, FolderRecords)
    return sorted(path for path in vault.records.path.rglob("*") if path.is_file())


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=2000))
def test_what_is_sealed_opens_again(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """Any bytes, also none."""
    vault = Vault(FolderRecords(tmp_path_factory.mktemp("v")), keyring("2026"))
    vault.seal(STUDY, "crosswalk", data)
    assert vault.open(STUDY, "crosswalk") == data


def test_a_large_object_is_sealed(vault: Vault) -> None:
    """Re-identified results wait for delivery here: 50 MB."""
    data = os.urandom(1 << 20) * 50
    vault.seal(STUDY, "result-2.25.7", data)
    assert vault.open(STUDY, "result-2.25.7") == data


def test_nothing_is_readable_on_disk(vault: Vault) -> None:
    """Neither content nor names show the patient; owner only."""
    vault.seal(STUDY, "crosswalk", SECRET)
    for path in files(vault):
        assert b"Featherstone" not in path.read_bytes()
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in files(vault)] == ["crosswalk", "key"]


def test_the_same_data_is_never_sealed_the_same_way(vault: Vault) -> None:
    """Fresh nonces, and another data key per study."""
    sealed = set()
    for study in (STUDY, STUDY, OTHER):
        vault.seal(study, "crosswalk", SECRET)
        sealed.add(vault.records.read(study, "crosswalk"))
    assert len(sealed) == 3


def test_names_are_listed_and_records_replaced_and_deleted(vault: Vault) -> None:
    """The vault's own key record is not shown."""
    vault.seal(STUDY, "crosswalk", b"one")
    vault.seal(STUDY, "result", b"two")
    vault.seal(STUDY, "result", b"three")
    assert vault.names(STUDY) == ["crosswalk", "result"]
    assert vault.open(STUDY, "result") == b"three"
    vault.delete(STUDY, "result")
    vault.delete(STUDY, "result")
    assert vault.names(STUDY) == ["crosswalk"]
    assert vault.names(OTHER) == []


@pytest.mark.parametrize("name", ["crosswalk", "key"])
def test_every_altered_byte_is_noticed(vault: Vault, name: str) -> None:
    """Each byte of a record and of its key is authenticated."""
    vault.seal(STUDY, "crosswalk", b"short")
    sealed = vault.records.read(STUDY, name)
    assert sealed is not None
    for place in range(len(sealed)):
        altered = bytearray(sealed)
        altered[place] ^= 1
        vault.records.write(STUDY, name, bytes(altered))
        with pytest.raises(VaultError) as caught:
            vault.open(STUDY, "crosswalk")
        assert isinstance(caught.value, Quarantined)
    for length in range(len(sealed)):
        vault.records.write(STUDY, name, sealed[:length])
        with pytest.raises(VaultError):
            vault.open(STUDY, "crosswalk")


def test_a_record_does_not_open_in_another_place(vault: Vault) -> None:
    """Swapping records between patients, types or tenants is noticed."""
    for study in (STUDY, OTHER):
        for name in ("crosswalk", "result"):
            vault.seal(study, name, study.encode())
    own = vault.records.read(STUDY, "crosswalk")
    key = vault.records.read(STUDY, "key")
    assert own is not None and key is not None
    vault.records.write(STUDY, "result", own)
    with pytest.raises(VaultError):
        vault.open(STUDY, "result")
    vault.records.write(OTHER, "crosswalk", own)
    vault.records.write(OTHER, "key", key)
    with pytest.raises(VaultError):
        vault.open(OTHER, "crosswalk")
    stranger = Vault(vault.records, vault.keyring, tenant="another hospital")
    with pytest.raises(VaultError):
        stranger.open(STUDY, "crosswalk")


def test_missing_is_not_altered(vault: Vault) -> None:
    """No record is another error than a bad one."""
    with pytest.raises(CrosswalkMissing):
        vault.open(STUDY, "crosswalk")
    vault.seal(STUDY, "crosswalk", b"x")
    with pytest.raises(CrosswalkMissing):
        vault.open(STUDY, "result")


def test_wrong_key_does_not_open(vault: Vault) -> None:
    """The same name with another key, and a name that is not in the ring."""
    vault.seal(STUDY, "crosswalk", SECRET)
    for ring in (Keyring("2026", {"2026": bytes(32)}), keyring("2027")):
        with pytest.raises(VaultError):
            Vault(vault.records, ring).open(STUDY, "crosswalk")


def test_shredding_destroys_every_copy(vault: Vault) -> None:
    """A backup of the records is worthless once the data key is gone."""
    vault.seal(STUDY, "crosswalk", SECRET)
    vault.seal(OTHER, "crosswalk", b"stays")
    backup = vault.records.read(STUDY, "crosswalk")
    assert backup is not None
    vault.shred(STUDY)
    assert not any(STUDY in str(path) for path in files(vault))
    vault.records.write(STUDY, "crosswalk", backup)
    with pytest.raises(CrosswalkMissing):
        vault.open(STUDY, "crosswalk")
    vault.seal(STUDY, "result", b"new key")
    with pytest.raises(VaultError):
        vault.open(STUDY, "crosswalk")
    assert vault.open(OTHER, "crosswalk") == b"stays"


def test_keys_rotate_without_touching_records(vault: Vault) -> None:
    """After rewrap the old key-encryption key is not needed; records are the same bytes."""
    for study in (STUDY, OTHER):
        vault.seal(study, "crosswalk", study.encode())
    before = vault.records.read(STUDY, "crosswalk")
    both = Vault(vault.records, keyring("2026", "2027"))
    assert both.rewrap() == 2
    assert both.rewrap() == 0
    assert vault.records.read(STUDY, "crosswalk") == before
    new = Vault(vault.records, keyring("2027"))
    assert new.open(STUDY, "crosswalk") == STUDY.encode()
    with pytest.raises(VaultError, match="2027"):
        vault.open(STUDY, "crosswalk")


def test_two_writers_agree_on_one_data_key(tmp_path: Path) -> None:
    """Workers that seal the first records of a study at once do not lock each other out."""
    records = FolderRecords(tmp_path)
    start = threading.Barrier(8)

    def seal(number: int) -> None:
        start.wait()
        Vault(records, keyring("2026")).seal(STUDY, f"result-{number}", bytes([number]))

    threads = [threading.Thread(target=seal, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    vault = Vault(records, keyring("2026"))
    assert [vault.open(STUDY, f"result-{number}") for number in range(8)] == [
        bytes([number]) for number in range(8)
    ]


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "../x", "a\0b", "x" * 200, "ä"])
def test_names_cannot_leave_the_folder(vault: Vault, name: str) -> None:
    """Names are checked before they become paths."""
    for study, record_type in ((name, "crosswalk"), (STUDY, name)):
        with pytest.raises(VaultError):
            vault.seal(study, record_type, b"x")
        with pytest.raises(VaultError):
            vault.open(study, record_type)


def test_the_key_record_is_the_vaults_own(vault: Vault) -> None:
    """A caller can neither read nor replace a data key."""
    vault.seal(STUDY, "crosswalk", b"x")
    with pytest.raises(VaultError):
        vault.seal(STUDY, "key", b"x")
    with pytest.raises(VaultError):
        vault.open(STUDY, "key")
    with pytest.raises(VaultError):
        vault.delete(STUDY, "key")


def test_a_key_ring_is_checked(vault: Vault) -> None:
    """32 bytes, plain names, a current one; keys are never shown."""
    for current, keys in (("a", {}), ("a", {"a": b"short"}), ("a/b", {"a/b": bytes(32)})):
        with pytest.raises(VaultError):
            Keyring(current, keys)
    assert "2026--" not in repr(vault)
