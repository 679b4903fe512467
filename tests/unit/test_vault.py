"""The vault: what is sealed opens again, and only there, only with the key, only unaltered."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anonymizer import FolderRecords, Keyring, Vault
from anonymizer.errors import (
    CrosswalkMissing,
    KeyMissing,
    Quarantined,
    RecordAltered,
    RecordTruncated,
    StudyDestroyed,
    VaultError,
    WrongKey,
)

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
    found = (path for path in vault.records.path.rglob("*") if path.is_file())
    return sorted(path for path in found if path.name != ".lock")


def damage(vault: Vault, study: str, name: str, data: bytes) -> None:
    """Put ``data`` in the place of a record, as a broken disk would: without the store."""
    assert isinstance(vault.records, FolderRecords)
    (vault.records.path / study / name).write_bytes(data)


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
def test_every_altered_bit_is_noticed(vault: Vault, name: str) -> None:
    """Each bit of a record and of its key record is authenticated; the error says what is wrong."""
    vault.seal(STUDY, "crosswalk", b"short")
    sealed = vault.records.read(STUDY, name)
    assert sealed is not None
    causes: Counter[str] = Counter()
    for place in range(8 * len(sealed)):
        altered = bytearray(sealed)
        altered[place // 8] ^= 1 << place % 8
        damage(vault, STUDY, name, bytes(altered))
        with pytest.raises(VaultError) as caught:
            vault.open(STUDY, "crosswalk")
        assert isinstance(caught.value, Quarantined)
        causes[type(caught.value).__name__] += 1
    assert causes.total() == 8 * len(sealed)
    if name == "key":  # magic, nonce, data key, tag; length of the name; its check value; the name
        check, name_bits = 8 * 8, 8 * len("2026")
        assert causes["WrongKey"] == check
        assert causes["KeyMissing"] + causes["RecordAltered"] + causes["RecordTruncated"] == (
            8 * len(sealed) - check
        )
        assert 0 < causes["KeyMissing"] <= name_bits
    else:
        assert causes == {"RecordTruncated": 64, "RecordAltered": 8 * len(sealed) - 64}


@pytest.mark.parametrize("name", ["crosswalk", "key"])
def test_every_other_length_is_truncated(vault: Vault, name: str) -> None:
    """Cut anywhere, or longer than written: said to be so, with the record's type."""
    vault.seal(STUDY, "crosswalk", b"short")
    sealed = vault.records.read(STUDY, name)
    assert sealed is not None
    for data in [sealed[:length] for length in range(len(sealed))] + [sealed + b"\0"]:
        damage(vault, STUDY, name, data)
        with pytest.raises(RecordTruncated, match=name) as caught:
            vault.open(STUDY, "crosswalk")
        assert "backup" in caught.value.remedy


@pytest.mark.parametrize("name", ["crosswalk", "key"])
def test_no_other_bytes_open(vault: Vault, name: str) -> None:
    """Any bytes, also ones that begin or end like a record, in the place of record or key."""
    vault.seal(STUDY, "crosswalk", SECRET)
    sealed = vault.records.read(STUDY, name)
    assert sealed is not None
    refused = 0

    @settings(max_examples=200, deadline=None)
    @given(st.integers(0, len(sealed)), st.integers(0, len(sealed)), st.binary(max_size=64))
    def replaced(start: int, end: int, between: bytes) -> None:
        nonlocal refused
        foreign = sealed[:start] + between + sealed[end:]
        damage(vault, STUDY, name, foreign)
        if foreign == sealed:
            assert vault.open(STUDY, "crosswalk") == SECRET
            return
        with pytest.raises(VaultError):
            vault.open(STUDY, "crosswalk")
        refused += 1

    replaced()
    assert refused >= 150


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
    stranger = Vault(vault.records, vault.keyring, tenant="another")
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
    """The same name with another key, and a name that is not in the ring; both are named."""
    vault.seal(STUDY, "crosswalk", SECRET)
    for ring, error in (
        (Keyring("2026", {"2026": bytes(32)}), WrongKey),
        (keyring("2027"), KeyMissing),
    ):
        with pytest.raises(error, match="2026"):
            Vault(vault.records, ring).open(STUDY, "crosswalk")


def test_shredding_destroys_every_copy(vault: Vault) -> None:
    """A backup of the records is worthless once the data key is gone."""
    vault.seal(STUDY, "crosswalk", SECRET)
    vault.seal(OTHER, "crosswalk", b"stays")
    backup = vault.records.read(STUDY, "crosswalk")
    assert backup is not None
    vault.shred(STUDY)
    assert [path.name for path in files(vault) if STUDY in str(path)] == ["destroyed"]
    vault.records.write(STUDY, "crosswalk", backup)
    with pytest.raises(StudyDestroyed, match="destroyed on 20"):
        vault.open(STUDY, "crosswalk")
    with pytest.raises(StudyDestroyed):
        vault.seal(STUDY, "result", b"new")
    vault.records.delete(STUDY, "destroyed")  # taken in again by hand: the old copy stays closed
    vault.seal(STUDY, "result", b"new key")
    with pytest.raises(RecordAltered):
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


def test_the_same_data_is_sealed_once(vault: Vault) -> None:
    """The second time nothing is written; other data, kinds and studies get other names."""
    first = vault.seal_once(STUDY, "series", SECRET)
    sealed = vault.records.read(STUDY, first)
    assert vault.seal_once(STUDY, "series", SECRET) == first
    assert vault.records.read(STUDY, first) == sealed
    others = {
        vault.seal_once(STUDY, "series", SECRET + b"!"),
        vault.seal_once(STUDY, "instances", SECRET),
        vault.seal_once(OTHER, "series", SECRET),
    }
    assert len(others | {first}) == 4
    vault.records.write(STUDY, first, b"damaged")
    assert vault.seal_once(STUDY, "series", SECRET) == first
    assert vault.open(STUDY, first) == SECRET


def test_the_index_finds_studies_and_shows_nothing(vault: Vault) -> None:
    """Two studies of one patient, one study by its UID; no value on disk, none for a stranger."""
    for study in (STUDY, OTHER):
        vault.remember(study, "PatientID", "MRN-774411 ")
        vault.remember(study, "PatientID", "MRN-774411")
    vault.remember(STUDY, "StudyInstanceUID", "1.2.3.4")
    vault.remember(STUDY, "AccessionNumber", "")
    assert vault.find("PatientID", " MRN-774411") == [STUDY, OTHER]
    assert vault.find("StudyInstanceUID", "1.2.3.4") == [STUDY]
    assert vault.find("AccessionNumber", "MRN-774411") == []
    assert vault.find("AccessionNumber", "") == []
    assert vault.studies() == []  # entries of the index are no studies
    for path in files(vault):
        assert b"774411" not in path.read_bytes() + str(path).encode()
    stranger = Vault(vault.records, vault.keyring, tenant="another")
    assert stranger.find("PatientID", "MRN-774411") == []
    renewed = Vault(vault.records, keyring("2026", "2027"))
    assert renewed.rewrap() == 1  # the index key outlives a rotation
    assert Vault(vault.records, keyring("2027")).find("PatientID", "MRN-774411") == [STUDY, OTHER]


def test_a_planted_entry_of_the_index_is_noticed(vault: Vault) -> None:
    """Nobody can point an identifier to another study; remembering again mends an entry."""
    for study, patient in ((STUDY, "A"), (OTHER, "B")):
        vault.remember(study, "PatientID", patient)
    [(folder_a, own)] = [
        (entry, vault.records.read(entry, STUDY))
        for entry in vault.records.studies()
        if STUDY in vault.records.names(entry)
    ]
    assert own is not None
    for planted in (own, own[:-1], b""):
        vault.records.write(folder_a, OTHER, planted)
        with pytest.raises(RecordAltered):
            vault.find("PatientID", "A")
    vault.remember(OTHER, "PatientID", "A")
    assert vault.find("PatientID", "A") == [STUDY, OTHER]


def test_shredding_empties_the_index_and_is_finished_by_a_second_one(vault: Vault) -> None:
    """No entry leads from an identifier to the study; what a crash left goes the next time."""
    vault.seal(STUDY, "crosswalk", SECRET)
    vault.remember(STUDY, "PatientID", "A")
    key = vault.records.read(STUDY, "key")
    assert key is not None
    vault.remember(OTHER, "PatientID", "B")
    entries = set(vault.records.studies())
    vault.shred(STUDY)
    # Not even an empty folder, whose time would tell which patient's study was destroyed.
    [gone] = entries - set(vault.records.studies())
    assert gone.startswith("index-")
    assert vault.find("PatientID", "B") == [OTHER]
    assert vault.find("PatientID", "A") == []
    when = vault.destroyed(STUDY)
    assert vault.knows(STUDY) and not vault.knows(OTHER)
    vault.records.write(STUDY, "key", key)  # as if the crash came before the key was gone
    (folder := vault.records.path / STUDY).joinpath(".leftover").write_bytes(key)  # type: ignore[attr-defined]
    with pytest.raises(StudyDestroyed):
        vault.open(STUDY, "crosswalk")
    vault.shred(STUDY)
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "destroyed"]
    assert vault.destroyed(STUDY) == when


def test_rewrapping_never_brings_a_shredded_key_back(vault: Vault) -> None:
    """A rotation and a shredding of the same studies at once: no key is left."""
    studies = [f"2.25.{number}" for number in range(100, 140)]
    for study in studies:
        vault.seal(study, "crosswalk", SECRET)
    rotating = Vault(vault.records, keyring("2026", "2027"))
    threads = [
        threading.Thread(target=lambda: rotating.rewrap(studies)),
        threading.Thread(target=lambda: [vault.shred(study) for study in reversed(studies)]),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [vault.records.names(study) for study in studies] == [["destroyed"]] * len(studies)


_WRITER = """
import itertools, sys
from pathlib import Path
from anonymizer import FolderRecords, Keyring, Vault
ring = {name: name.encode().ljust(32, b"-") for name in ("2026", "2027")}
records = FolderRecords(Path(sys.argv[1]))
for number in itertools.count():
    vault = Vault(records, Keyring(("2026", "2027")[number % 2], ring))
    vault.seal(f"2.25.{number % 7}", "crosswalk", bytes([number % 251]) * 20000)
    vault.remember(f"2.25.{number % 7}", "PatientID", "A")
    vault.rewrap()
    print(number, flush=True)
"""


def test_a_killed_writer_leaves_every_record_whole(tmp_path: Path) -> None:
    """SIGKILL in the middle of sealing and rotating, again and again: everything opens."""
    ring = keyring("2026", "2027")
    vault = Vault(FolderRecords(tmp_path), ring)
    opened = 0
    for round_number in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(tmp_path)], stdout=subprocess.PIPE
        ) as writer:
            assert writer.stdout is not None
            for _ in range(3 + 4 * round_number):
                assert writer.stdout.readline(), "the writer failed by itself"
            writer.kill()
        for study in vault.studies():
            if not vault.names(study):  # killed between its key and its first record
                continue
            data = vault.open(study, "crosswalk")
            assert len(data) == 20000
            assert len(set(data)) == 1
            opened += 1
        assert set(vault.find("PatientID", "A")) <= set(vault.studies())
    assert opened >= 20


def test_an_index_entry_that_comes_and_goes_is_never_lost(vault: Vault) -> None:
    """One patient's studies are remembered and shredded at once: who stays can be found."""
    studies = [f"2.25.{number}" for number in range(1, 25)]

    def remember_all() -> None:
        for study in studies:
            vault.remember(study, "PatientID", "A")

    def shred_every_second() -> None:
        for study in studies[::2]:
            while study not in vault.find("PatientID", "A"):
                time.sleep(0.001)
            vault.shred(study)

    failed: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - told below
            failed.append(error)

    threads = [
        threading.Thread(target=run, args=(work,)) for work in (remember_all, shred_every_second)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert failed == []
    assert vault.find("PatientID", "A") == sorted(studies[1::2])
