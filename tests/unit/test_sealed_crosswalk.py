"""A crosswalk in the vault: whole, once per series, found by what it was, refused if swapped."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anonymizer import Crosswalk, FolderRecords, Keyring, PseudonymKeys, Vault, basic_policy
from anonymizer.epochs import begun_epochs, confirm_epoch
from anonymizer.errors import EpochChanged, KeyMissing, RecordAltered, StudyDestroyed, WrongKey
from anonymizer.sealed_crosswalk import Sealed, open_crosswalk, seal_crosswalk
from anonymizer.series import Deidentifier
from tests.identified_ct import ACCESSION, PATIENT_ID, SERIES, STUDY, ct_bytes

SECRET = bytes(range(32))


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    """An empty vault."""
    return Vault(FolderRecords(tmp_path / "vault"), Keyring("k", {"k": SECRET}))


def crosswalk_of(numbers: Sequence[int], *, epoch: int = 1, **attributes: object) -> Crosswalk:
    """The crosswalk of some slices of the made-up series."""
    keys = PseudonymKeys.from_secret(bytes([epoch]) * 32, epoch)
    deidentifier = Deidentifier(basic_policy(), keys)
    made = (deidentifier.deidentify(ct_bytes(number, **attributes)) for number in numbers)
    return Crosswalk.collect(one.original for one in made)


def records(vault: Vault, study: str) -> dict[str, bytes]:
    return {name: vault.records.read(study, name) or b"" for name in vault.names(study)}


def test_a_crosswalk_comes_back_as_it_was(vault: Vault) -> None:
    """Every field, the original header byte for byte, and the epoch of its key."""
    crosswalk = crosswalk_of([3, 1, 2], epoch=4)
    opened = open_crosswalk(vault, seal_crosswalk(vault, crosswalk, epoch=4))
    assert opened.crosswalk == crosswalk
    assert opened.epoch == 4
    assert opened.crosswalk.header == crosswalk.header


_UID = st.from_regex(r"1\.[1-9][0-9]{0,8}\.[1-9][0-9]{0,8}", fullmatch=True)


@settings(max_examples=40, deadline=None)
@given(
    instances=st.dictionaries(_UID, _UID, max_size=6),
    uids=st.dictionaries(_UID, _UID, max_size=6),
    replaced=st.booleans(),
)
def test_any_crosswalk_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    instances: dict[str, str],
    uids: dict[str, str],
    replaced: bool,
) -> None:
    """Whatever instances and UIDs it has, also instances whose UID was not replaced."""
    content = json.loads(crosswalk_of([1]).to_bytes())
    content["instances"] |= instances
    content["uids"] |= uids | ({uid: f"2.25.{uid[2:]}" for uid in instances} if replaced else {})
    crosswalk = Crosswalk.from_bytes(json.dumps(content).encode())
    vault = Vault(FolderRecords(tmp_path_factory.mktemp("v")), Keyring("k", {"k": SECRET}))
    assert open_crosswalk(vault, seal_crosswalk(vault, crosswalk, epoch=1)).crosswalk == crosswalk


def test_the_header_is_sealed_once_per_series(vault: Vault) -> None:
    """A second job adds nothing; late instances add a list; another series adds its header."""
    first = seal_crosswalk(vault, crosswalk_of([1, 2]), epoch=1)
    before = records(vault, first.study)
    assert seal_crosswalk(vault, crosswalk_of([1, 2]), epoch=1) == first
    assert records(vault, first.study) == before
    kinds = sorted(name.split("-")[0] for name in before)
    assert kinds == ["instances", "series"]

    late = seal_crosswalk(vault, crosswalk_of([1, 2, 3]), epoch=1)
    assert late.study == first.study
    kinds = sorted(name.split("-")[0] for name in records(vault, first.study))
    assert kinds == ["instances", "instances", "series"]
    assert len(open_crosswalk(vault, late).crosswalk.instances) == 3
    assert len(open_crosswalk(vault, first).crosswalk.instances) == 2

    seal_crosswalk(vault, crosswalk_of([1], SeriesInstanceUID=f"{SERIES}.9"), epoch=1)
    kinds = sorted(name.split("-")[0] for name in records(vault, first.study))
    assert kinds == ["instances", "instances", "instances", "series", "series"]


def test_a_study_is_found_by_what_it_was(vault: Vault) -> None:
    """Patient, study and accession lead to it, in both epochs; other values lead nowhere."""
    sealed = {seal_crosswalk(vault, crosswalk_of([1], epoch=e), epoch=e).study for e in (1, 2)}
    assert len(sealed) == 2
    for keyword, value in (
        ("PatientID", PATIENT_ID),
        ("StudyInstanceUID", STUDY),
        ("AccessionNumber", ACCESSION),
    ):
        assert set(vault.find(keyword, value)) == sealed
        assert vault.find(keyword, value + "1") == []


def test_a_patient_id_outside_ascii_is_found(vault: Vault) -> None:
    """The bytes are read in the character set of the original."""
    crosswalk = crosswalk_of([1], PatientID="Mü-7", SpecificCharacterSet="ISO_IR 100")
    sealed = seal_crosswalk(vault, crosswalk, epoch=1)
    assert vault.find("PatientID", "Mü-7") == [sealed.study]


def test_records_of_two_series_cannot_be_swapped(vault: Vault) -> None:
    """Of one study, under one key, of one kind: each opens in its own place only."""
    one = seal_crosswalk(vault, crosswalk_of([1]), epoch=1)
    before = set(vault.names(one.study))
    two = seal_crosswalk(vault, crosswalk_of([1], SeriesInstanceUID=f"{SERIES}.9"), epoch=1)
    assert two.study == one.study
    content = records(vault, one.study)
    swapped = 0
    for first in before:
        kind = first.split("-")[0]
        [second] = [n for n in content if n.startswith(kind) and n not in before]
        vault.records.write(one.study, first, content[second])
        with pytest.raises(RecordAltered, match=kind):
            open_crosswalk(vault, one)
        vault.records.write(one.study, first, content[first])
        swapped += 1
    assert swapped == 2
    assert open_crosswalk(vault, one).crosswalk.series_instance_uid == SERIES


def test_a_destroyed_study_neither_opens_nor_begins_again(vault: Vault) -> None:
    """Re-identification is refused and says why; so is the same study when it is sent again."""
    sealed = seal_crosswalk(vault, crosswalk_of([1]), epoch=1)
    vault.shred(sealed.study)
    for act in (
        lambda: open_crosswalk(vault, sealed),
        lambda: seal_crosswalk(vault, crosswalk_of([1]), epoch=1),
    ):
        with pytest.raises(StudyDestroyed, match="was destroyed on"):
            act()
    assert vault.find("StudyInstanceUID", STUDY) == []


def test_nothing_original_is_readable_on_disk(vault: Vault) -> None:
    """Neither in names nor in bytes; the epoch, the index and the studies are all there."""
    keys = PseudonymKeys.from_secret(SECRET)
    confirm_epoch(vault, keys)
    seal_crosswalk(vault, crosswalk_of([1, 2]), epoch=1)
    assert isinstance(vault.records, FolderRecords)
    seen = 0
    for folder, _, names in os.walk(vault.records.path):
        for name in names:
            data = (Path(folder) / name).read_bytes() + f"{folder}/{name}".encode()
            for value in (PATIENT_ID, ACCESSION, STUDY, keys.check_value.hex()):
                assert value.encode() not in data
            assert keys.check_value not in data
            seen += 1
    assert seen >= 9


# ---------------------------------------------------------------- epochs


def test_an_epoch_begins_at_the_first_start_and_goes_on(vault: Vault) -> None:
    """The same key again is fine; a check value is all that is kept."""
    keys = PseudonymKeys.from_secret(SECRET)
    confirm_epoch(vault, keys)
    confirm_epoch(vault, keys)
    assert begun_epochs(vault) == [1]
    assert vault.open(vault.own, "epoch-1") == keys.check_value


def test_another_key_in_the_same_epoch_stops_the_start(vault: Vault) -> None:
    """The error says what would break and how to change it on purpose."""
    confirm_epoch(vault, PseudonymKeys.from_secret(SECRET))
    with pytest.raises(EpochChanged, match=r"epoch 1 began with: .*other pseudonyms") as caught:
        confirm_epoch(vault, PseudonymKeys.from_secret(bytes(32)))
    assert "new-epoch" in caught.value.remedy


def test_a_new_epoch_is_begun_on_purpose_and_does_not_go_back(vault: Vault) -> None:
    """A key with the next number begins it; without that key nothing starts any more."""
    confirm_epoch(vault, PseudonymKeys.from_secret(SECRET))
    confirm_epoch(vault, PseudonymKeys.from_secret(bytes(32), 2))
    assert begun_epochs(vault) == [1, 2]
    with pytest.raises(EpochChanged, match="Epoch 2"):
        confirm_epoch(vault, PseudonymKeys.from_secret(SECRET))


def test_the_start_also_finds_the_wrong_vault_key(vault: Vault) -> None:
    """The check value is sealed: without the vault's key there is no start."""
    keys = PseudonymKeys.from_secret(SECRET)
    confirm_epoch(vault, keys)
    for ring, error in (
        (Keyring("k", {"k": bytes(32)}), WrongKey),
        (Keyring("other", {"other": SECRET}), KeyMissing),
    ):
        with pytest.raises(error, match="'k'"):
            confirm_epoch(Vault(vault.records, ring), keys)


def test_results_of_an_old_epoch_are_led_back_without_its_key(vault: Vault) -> None:
    """Crosswalks hold what they need; a patient's studies of two epochs share no pseudonym."""
    old, new = crosswalk_of([1], epoch=1), crosswalk_of([1], epoch=2)
    assert old.pseudonym != new.pseudonym
    assert not set(old.uids.values()) & set(new.uids.values())
    for epoch, crosswalk in ((1, old), (2, new)):
        sealed = seal_crosswalk(vault, crosswalk, epoch=epoch)
        assert isinstance(sealed, Sealed)
        assert open_crosswalk(vault, sealed).crosswalk.study_instance_uid == STUDY
