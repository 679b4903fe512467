"""PS3.15 Table E.3.10-1: every private attribute that may stay, tried by itself."""

from __future__ import annotations

import io
import json
from importlib import resources
from typing import Any

import pydicom
import pytest
from pydicom.datadict import private_dictionary_VR
from pydicom.dataset import Dataset

from anonymizer import Policy, PseudonymKeys, basic_policy, deidentify_instance
from anonymizer.options import Option
from anonymizer.profile import profile_with
from tests.identified_ct import ct_instance, part10

KEYS = PseudonymKeys.from_secret(bytes(32))
SAFE = profile_with(frozenset({Option.RETAIN_SAFE_PRIVATE}))
TABLE = json.loads(
    resources.files("anonymizer.profiles").joinpath("safe_private.json").read_text("utf-8")
)["attributes"]
VALUES = {"DS": "1.5", "IS": "800", "FL": 1.5, "FD": 2.5, "SS": -3, "US": 3, "SL": -4, "UL": 4}
TERM = "ISOTROPIC"  # one of the coded terms


def row_id(row: dict[str, str]) -> str:
    """Group, element and creator."""
    return f"{row['group']}xx{row['element']}-{row['creator']}"


def with_private(row: dict[str, str], vr: str, value: Any, creator: str = "") -> Dataset:
    """A CT with the attribute of this row in the third block of its group."""
    ds = ct_instance()
    group = int(row["group"], 16)
    ds.add_new(group << 16 | 0x0012, "LO", creator or row["creator"])
    ds.add_new(group << 16 | 0x1200 | int(row["element"], 16), vr, value)
    return ds


def private_of(ds: Dataset, policy: Policy) -> list[object]:
    """Values of the private attributes that come out."""
    data = deidentify_instance(part10(ds), policy, KEYS).data
    return [e.value for e in pydicom.dcmread(io.BytesIO(data)) if e.tag.is_private]


@pytest.mark.parametrize("row", TABLE, ids=row_id)
def test_safe_attribute_stays_by_option_under_its_creator_only(row: dict[str, str]) -> None:
    """It stays with its creator; without the option, or under another creator, it goes."""
    value = VALUES.get(row["vr"], TERM)
    ds = with_private(row, row["vr"], value)
    assert private_of(ds, SAFE) == [row["creator"], value]
    assert private_of(ds, basic_policy()) == []
    assert private_of(with_private(row, row["vr"], value, "SOMEBODY ELSE"), SAFE) == []


@pytest.mark.parametrize("row", TABLE, ids=row_id)
def test_safe_attribute_with_words_in_it_goes(row: dict[str, str]) -> None:
    """Nobody's name stays because it stands in an attribute that should hold a number."""
    assert private_of(with_private(row, "LO", "XYLOPHONE"), SAFE) == []
    assert private_of(with_private(row, "UN", b"XYLOPHO"), SAFE) == []


def test_list_holds_numbers_and_terms_known_to_a_second_source() -> None:
    """No text, no UIDs, no bulk data; pydicom's private dictionary agrees, but for one VR."""
    assert len(TABLE) == len({row_id(row) for row in TABLE}) == 77
    for row in TABLE:
        tag = int(row["group"] + "10" + row["element"], 16)
        vr = "FD" if row["name"] == "Pitch" else row["vr"]  # where pydicom's is not the standard's
        assert private_dictionary_VR(tag, row["creator"]) == vr
        assert row["vr"] in {*VALUES, "CS"}
        assert row["name"] not in ("", "?", "Unknown")
