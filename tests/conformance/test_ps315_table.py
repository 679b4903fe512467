"""Every row of PS3.15 Table E.1-1, in every column, by what comes out of a CT that has them all.

For each column one instance is de-identified in which every attribute of the table has a value, at
top level and in a sequence that is kept; what is expected of each attribute is read from the
table's letters, not from the code under test.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from functools import cache
from importlib import resources

import pydicom
import pytest
from pydicom._dicom_dict import DicomDictionary
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from anonymizer import PseudonymKeys, deidentify_instance
from anonymizer.options import Option
from anonymizer.profile import profile_with, supported_sop_classes
from tests.identified_ct import ROOT, ct_instance, part10

KEYS = PseudonymKeys.from_secret(bytes(32))
TABLE = json.loads(
    resources.files("anonymizer.profiles").joinpath("ps315_e1_1.json").read_text("utf-8")
)["rows"]
# Column of the table to the option that it is; none is the basic profile alone.
COLUMNS = {"basic": None} | {option.column: option for option in Option if option.column}
TEXT = {"LO", "LT", "SH", "ST", "UC", "UT"}
BULK = {"OB", "OW", "OF", "UN"}
# "thorax" is published vocabulary, the other word is not.
FREE_TEXT, CLEANED = "thorax Xylophone", "thorax"
VALUES = {
    "AE": "STATION1", "AS": "076Y", "CS": "THORAX", "DA": "20111213", "DS": "42", "FD": 4.0,
    "DT": "20111213101112", "FL": 4.0, "IS": "42", "OB": b"xylophon", "OW": b"xylophon",
    "PN": "Marimba^Zed", "TM": "101112", "UL": 4, "UR": "http://xylo.example", "US": 4,
    "OF": b"xylophon", "UN": b"xylophon", "AT": 0x00080005, "SS": 4,
}  # fmt: skip
# Written by the engine, whatever the table says: the pseudonym, and what says what was done.
WRITTEN = {"0010,0010", "0010,0020", "0012,0063", "0012,0064"}
# With Retain UIDs these stay too, against the table: UID (0040,A124) of a report equals the
# TrackingUID of a segmentation, which the table retains, and one may not change without the other.
RETAINED_WITH_UIDS = {"0040,A124", "0400,0100", "300A,0054"}
# Searched for in every other value, so each needs a value of its own.
NUMBERS = re.compile(
    "0008,0050|0010,1000|0010,1040|0010,1050|0010,1090|0010,2154|0012,004[02]|0020,0010"
    "|0038,00[16]0|0040,0009|0040,0253|0040,1001|0040,201[67]|0008,008[01]"
)


def tag_of(row: dict[str, str]) -> int | None:
    """The tag of a row; None for the rows about repeating and private groups."""
    digits = row["tag"].replace(",", "")
    return int(digits, 16) if re.fullmatch("[0-9A-F]{8}", digits) else None


def vr_of(row: dict[str, str]) -> str:
    """Its VR; LO stands in for attributes that are newer than pydicom's dictionary."""
    tag = tag_of(row)
    return DicomDictionary[tag][0].split(" or ")[0] if tag in DicomDictionary else "LO"


def planted(row: dict[str, str]) -> object:
    """A value for the attribute of this row."""
    vr = vr_of(row)
    if NUMBERS.fullmatch(row["tag"]):
        return f"ZQ-{row['tag']}"
    if vr == "UI":
        return f"{ROOT}.9.{int(row['tag'].replace(',', ''), 16)}"
    if vr == "SQ":
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "39607008", "SCT", "Lung"
        code.StudyDescription = FREE_TEXT
        return Sequence([code])
    return VALUES.get(vr, FREE_TEXT)


def fill(ds: Dataset) -> Dataset:
    """``ds`` with every attribute of the table that a data set may have."""
    for row in TABLE:
        tag = tag_of(row)
        if tag is not None and tag >> 16 >= 8 and row["tag"] not in WRITTEN:
            ds.add(DataElement(tag, vr_of(row), planted(row)))
    return ds


def instance_of_the_whole_table() -> Dataset:
    """A CT with the whole table, once more in an item of a kept sequence, and other groups."""
    ds = fill(ct_instance())
    item = fill(Dataset())
    item.PatientName, item.PatientID = "Marimba^Zed", "ZQ-NESTED"
    ds.ReferencedImageSequence = [item]
    for group in (0x5000, 0x6000):
        ds.add_new(group << 16 | 0x3000, "OW", b"xylophon")
    ds.add_new(0x60004000, "LT", FREE_TEXT)
    for element, vr, value in ((0x10, "LO", "SIEMENS MR HEADER"), (0x100C, "IS", "800"),
                               (0x10F0, "LO", FREE_TEXT)):  # fmt: skip
        ds.add_new(0x00190000 | element, vr, value)
    return ds


@cache
def output(column: str) -> Dataset:
    """What comes out when the option of ``column`` is on."""
    option = COLUMNS[column]
    policy = profile_with(frozenset({option} if option else ()))
    data = deidentify_instance(part10(instance_of_the_whole_table()), policy, KEYS).data
    return pydicom.dcmread(io.BytesIO(data))


def is_gone(found: DataElement | None, row: dict[str, str]) -> bool:
    """X: the attribute is not there."""
    return found is None


def is_emptied(found: DataElement | None, row: dict[str, str]) -> bool:
    """Z: there is no value."""
    return found is None or found.is_empty


def is_replaced(found: DataElement | None, row: dict[str, str]) -> bool:
    """D: not the original value, and not empty where a dummy of the VR exists."""
    if vr_of(row) in BULK | {"SQ"}:
        return found is None or found.is_empty
    return found is not None and not found.is_empty and str(found.value) != str(planted(row))


def is_remapped(found: DataElement | None, row: dict[str, str]) -> bool:
    """U: another UID, of ours."""
    return found is not None and str(found.value).startswith("2.25.")


def is_kept(found: DataElement | None, row: dict[str, str]) -> bool:
    """K: the value as it was; a sequence with its items treated."""
    if vr_of(row) == "SQ":
        return (
            found is not None
            and [item.CodeValue for item in found.value] == ["39607008"]
            and found.value[0].get("StudyDescription", CLEANED) == CLEANED
        )
    if vr_of(row) in BULK:
        return found is None or found.is_empty
    return found is not None and str(found.value) == str(planted(row))


def is_cleaned(found: DataElement | None, row: dict[str, str]) -> bool:
    """C: of free text only vocabulary; of bulk data nothing; dates moved, times as they are."""
    vr = vr_of(row)
    if vr in TEXT and not NUMBERS.fullmatch(row["tag"]):
        return found is not None and found.value == CLEANED
    return is_kept(found, row)


def is_shifted(found: DataElement | None, row: dict[str, str]) -> bool:
    """C in the column of modified dates."""
    vr = vr_of(row)
    if vr == "TM":
        return is_kept(found, row)
    if vr not in ("DA", "DT"):  # an offset from UTC, time stamps as bytes: they go
        return found is None or found.is_empty
    before, after = str(planted(row)), "" if found is None else str(found.value)
    return "2001" <= after[:4] <= "2011" and after[:8] < before[:8] and after[8:] == before[8:]


LETTERS: dict[str, Callable[[DataElement | None, dict[str, str]], bool]] = {
    "X": is_gone, "Z": is_emptied, "D": is_replaced, "U": is_remapped, "K": is_kept,
    "C": is_cleaned,
}  # fmt: skip


def meets(row: dict[str, str], column: str, found: DataElement | None) -> bool:
    """Whether what was found is what the row's cell of ``column`` asks for."""
    cell = row.get(column) or row["basic"]
    if column == "rtn_long_modif_dates" and column in row:
        return is_shifted(found, row)
    if "U*" in cell or (column == "rtn_uids" and row["tag"] in RETAINED_WITH_UIDS):
        return is_kept(found, row)
    return any(LETTERS[letter](found, row) for letter in cell.split("/"))


def meets_elsewhere(row: dict[str, str], column: str, ds: Dataset) -> bool:
    """The same for the rows about what a data set does not have or the engine writes itself."""
    tag = tag_of(row)
    if tag is None:  # 50XX, 60XX, private: what cannot be cleaned goes
        first = {"50": 0x5000, "60": 0x6000}.get(row["tag"][:2], 0x0019)
        left = [element for element in ds if element.tag.group == first]
        return not left or (column == "rtn_safe_priv" and first == 0x0019)
    if row["tag"] == "0002,0003":
        return bool(ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID)
    if tag >> 16 < 8:  # commands and directories are no part of an image
        return tag not in ds and tag not in ds.file_meta
    return str(ds[tag].value).startswith("ANON-")


def is_elsewhere(row: dict[str, str]) -> bool:
    """Whether the row is about something that is not planted as an attribute of a data set."""
    tag = tag_of(row)
    return tag is None or tag >> 16 < 8 or row["tag"] in WRITTEN


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row['tag']}-{row['name'][:40]}")
def test_row_is_obeyed_in_every_column(row: dict[str, str]) -> None:
    """The basic profile, and each option alone: the attribute is what its cell says, anywhere."""
    tag = tag_of(row)
    wrong = {}
    for column in COLUMNS:
        ds = output(column)
        if tag is None or is_elsewhere(row):
            obeyed = meets_elsewhere(row, column, ds)
        elif tag not in DicomDictionary:  # newer than the dictionary: always removed
            obeyed = tag not in ds and tag not in ds.ReferencedImageSequence[0]
        elif row["tag"] == "0008,1140":  # the sequence in which the others stand
            obeyed = len(ds.ReferencedImageSequence) == 1
        else:
            places = (ds, ds.ReferencedImageSequence[0])
            obeyed = all(meets(row, column, place.get(tag)) for place in places)
        if not obeyed:
            wrong[column] = row.get(column) or row["basic"]
    assert wrong == {}


def test_table_is_whole() -> None:
    """656 rows, the basic profile and all ten options; those without a row of their own named."""
    assert (len(TABLE), len({row["tag"] for row in TABLE})) == (656, 656)
    assert len(COLUMNS) == 11
    assert {column for row in TABLE for column in row} - {"tag", "name"} == set(COLUMNS)
    assert sum(map(is_elsewhere, TABLE)) == 10
    newer = [row for row in TABLE if tag_of(row) and tag_of(row) not in DicomDictionary]
    assert all(row["basic"] in ("X", "Z", "D", "U") for row in newer) and len(newer) < 40


def test_pseudonym_stands_for_the_patient_in_an_item_too() -> None:
    """A name and number inside a sequence are replaced by those of this patient's pseudonym."""
    for column in COLUMNS:
        item = output(column).ReferencedImageSequence[0]
        assert item.PatientID == output(column).PatientID
        assert item.PatientName == output(column).PatientName


@pytest.mark.parametrize("column", COLUMNS)
def test_repeating_groups_go_and_private_ones_unless_safe(column: str) -> None:
    """Rows 50XX, 60XX and gggg odd: overlays and curves cannot be cleaned, so they go."""
    groups = {element.tag.group for element in output(column)}
    assert not groups & {0x5000, 0x6000}
    private = [int(element.tag) for element in output(column) if element.tag.is_private]
    safe = column == "rtn_safe_priv"
    assert private == ([0x00190010, 0x0019100C] if safe else [])


@pytest.mark.parametrize("column", COLUMNS)
def test_output_claims_the_profile_and_this_option(column: str) -> None:
    """Method codes, dates statement, file meta and the engine's own rows (PS3.15 E.1.1)."""
    ds, option = output(column), COLUMNS[column]
    codes = [item.CodeValue for item in ds.DeidentificationMethodCodeSequence]
    assert codes == ["113100", *([option.method[0]] if option else [])]
    expected = {Option.RETAIN_MODIFIED_DATES: "MODIFIED", Option.RETAIN_FULL_DATES: "UNMODIFIED"}
    assert ds.LongitudinalTemporalInformationModified == expected.get(option, "REMOVED")
    assert ds.PatientIdentityRemoved == "YES"
    assert str(ds.PatientName).startswith("ANON-") and ds.PatientID.startswith("ANON-")
    assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID
    assert str(ds.SOPInstanceUID).startswith("2.25.") is (option is not Option.RETAIN_UIDS)


@pytest.mark.parametrize("sop_class_uid", supported_sop_classes())
def test_codes_follow_the_type_in_every_sop_class(sop_class_uid: str) -> None:
    """A compound code never empties Type 1, never removes Type 2, always removes Type 3."""
    policy = profile_with(frozenset()).for_sop_class(sop_class_uid)
    wanted = {1: {"D", "Z", "K*"}, 2: {"Z", "D", "K*"}, 3: {"X"}}
    for row in TABLE:
        tag = tag_of(row)
        if tag not in DicomDictionary or "X/" not in row["basic"] or "U*" in row["basic"]:
            continue
        kind = policy.attribute_type(0, tag)
        letters = set(row["basic"].split("/")) | {"K*"}
        assert policy.action(0, tag).value in wanted[kind] & letters, (row["tag"], kind)


def test_all_options_together_let_no_name_through() -> None:
    """The patient's name in every text attribute of the dictionary, all that can be kept kept."""
    options = frozenset(Option) - {Option.CLEAN_PIXEL_DATA, Option.RETAIN_MODIFIED_DATES}
    ds = ct_instance()
    # What the instance is judged by, and what says who the patient or the institution is.
    given = {0x00080005, 0x00080016, 0x00100010, 0x00080080, 0x00080081}
    for tag, (vr, _vm, _name, _retired, keyword) in DicomDictionary.items():
        is_text = vr in TEXT | {"AE", "PN"} and 8 <= tag >> 16 < 0x7FE0 and keyword
        if is_text and tag not in given:
            ds.add(DataElement(tag, vr, "Featherstone"))
    assert len(ds) > 700
    data = deidentify_instance(part10(ds), profile_with(options), KEYS).data
    assert b"FEATHERSTONE" not in data.upper()
