"""Keys, UIDs, dates and ages: the functions behind every pseudonym."""

from __future__ import annotations

import datetime
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

from anonymizer import PseudonymKeys, create_key_file, read_key_file, read_or_create_key_file
from anonymizer.dates import cap_age, shift_date, shift_date_time, shift_days_for
from anonymizer.errors import KeyFileError
from anonymizer.uids import pseudonymous_uid

UIDS = st.lists(st.integers(0, 10**12), min_size=2, max_size=5).map(
    lambda arcs: "1.2." + ".".join(map(str, arcs))
)
DATES = st.dates(datetime.date(1880, 1, 1), datetime.date(2199, 12, 31))


@given(st.sets(UIDS, min_size=2, max_size=50), st.binary(min_size=32, max_size=32))
def test_uid_map_is_injective_and_repeatable(uids: set[str], key: bytes) -> None:
    """Different UIDs stay different, the same UID gets the same pseudonym."""
    first = {uid: pseudonymous_uid(uid, key) for uid in uids}
    assert len(set(first.values())) == len(uids)
    assert first == {uid: pseudonymous_uid(uid, key) for uid in uids}
    assert not uids & set(first.values())


@given(UIDS, st.binary(min_size=32, max_size=32))
def test_pseudonymous_uid_is_a_valid_uuid_derived_uid(uid: str, key: bytes) -> None:
    """At most 64 characters, valid by PS3.5 9.1, of RFC 9562 version 8."""
    pseudonym = pseudonymous_uid(uid, key)
    assert len(pseudonym) <= 64
    assert UID(pseudonym).is_valid
    number = uuid.UUID(int=int(pseudonym.removeprefix("2.25.")))
    assert (number.version, number.variant) == (8, uuid.RFC_4122)


def test_uids_of_the_standard_and_padding() -> None:
    """Registered UIDs stay; padding does not make another UID; nothing stays nothing."""
    assert pseudonymous_uid(CTImageStorage, b"k") == CTImageStorage
    assert pseudonymous_uid(ExplicitVRLittleEndian, b"k") == ExplicitVRLittleEndian
    assert pseudonymous_uid("1.2.3\0", b"k") == pseudonymous_uid("1.2.3", b"k")
    assert pseudonymous_uid("", b"k") == ""


@given(DATES, DATES, st.integers(-3650, -1))
def test_shift_keeps_intervals_and_can_be_undone(
    one: datetime.date, two: datetime.date, days: int
) -> None:
    """Days between two dates stay what they were; the opposite shift restores each."""
    moved = []
    for date in (one, two):
        text = date.isoformat().replace("-", "")
        shifted = shift_date(text, days)
        assert shifted is not None
        assert shift_date(shifted, -days) == text
        moved.append(datetime.date.fromisoformat(shifted))
    assert moved[1] - moved[0] == two - one


@given(st.text(max_size=40), st.binary(min_size=32, max_size=32))
def test_shift_always_moves_back(patient: str, key: bytes) -> None:
    """No patient's dates stay, and none moves into the future."""
    assert -3650 <= shift_days_for(patient, key) <= -1


@pytest.mark.parametrize("value", ["", "2024", "202405", "20240230", "May 2024", "20240517-"])
def test_what_is_no_full_date_cannot_be_shifted(value: str) -> None:
    """Such a value becomes empty where it stands."""
    assert shift_date(value, -10) is None


def test_dates_before_the_first_year_do_not_fail() -> None:
    """The calendar ends; the value goes."""
    assert shift_date("00010101", -1) is None


@pytest.mark.parametrize(
    ("value", "shifted"),
    [
        ("20240301", "20240229"),
        ("20240301101112", "20240229101112"),
        ("20240301101112.123456+0900", "20240229101112.123456"),
        ("202403011011", "202402291011"),
        ("20240301+0100", "20240229"),
        ("202403", None),
        ("20240301101112.1234567", None),
        ("2024030110111", None),
    ],
)
def test_date_time_of_any_precision(value: str, shifted: str | None) -> None:
    """DT keeps its time; the offset from UTC goes; a partial date goes whole."""
    assert shift_date_time(value, -1) == shifted


@pytest.mark.parametrize(
    ("age", "capped"),
    [("089Y", "089Y"), ("090Y", "090Y"), ("104Y", "090Y"), ("900W", "900W"), ("old", None)],
)
def test_ages_above_89_are_one_age(age: str, capped: str | None) -> None:
    """HIPAA 164.514(b)(2)(i)(C): 90 and over is one category."""
    assert cap_age(age) == capped


def test_keys_are_independent() -> None:
    """One secret, three different keys, the same every time."""
    keys = PseudonymKeys.from_secret(b"s" * 32)
    assert len({keys.uid, keys.patient_id, keys.date_shift}) == 3
    assert keys == PseudonymKeys.from_secret(b"s" * 32)
    with pytest.raises(KeyFileError):
        PseudonymKeys.from_secret(b"short")


def test_key_file_is_private_and_never_overwritten(tmp_path: Path) -> None:
    """Mode 0600, the same secret again, no second creation."""
    path = tmp_path / "keys" / "pseudonyms.key"
    secret = read_or_create_key_file(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_or_create_key_file(path) == read_key_file(path) == secret
    with pytest.raises(FileExistsError):
        create_key_file(path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_key_file_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    """Group or world access means that the secret is out."""
    path = tmp_path / "k"
    create_key_file(path)
    path.chmod(mode)
    with pytest.raises(KeyFileError, match="others may use it"):
        read_key_file(path)


@pytest.mark.parametrize("content", ["", "zz", "00" * 31, "00" * 33])
def test_malformed_key_file_is_refused(tmp_path: Path, content: str) -> None:
    """Exactly 64 hexadecimal digits."""
    path = tmp_path / "k"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(KeyFileError):
        read_key_file(path)


def test_key_file_behind_a_link_is_refused(tmp_path: Path) -> None:
    """A link's own mode says nothing."""
    create_key_file(tmp_path / "k")
    (tmp_path / "link").symlink_to(tmp_path / "k")
    with pytest.raises(KeyFileError):
        read_key_file(tmp_path / "link")
