"""PS3.15 Annex E against the whole data dictionary, and dciodvfy on what comes out."""

from __future__ import annotations

import io
import json
import shutil
from importlib import resources
from pathlib import Path

import pydicom
import pytest
from pydicom._dicom_dict import DicomDictionary
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from anonymizer import PseudonymKeys, basic_policy, deidentify_instance
from anonymizer.errors import BurnedInText
from tests.identified_ct import ct_instance, ct_with_planted_identity, part10, raw_element
from tests.part10 import errors_of

KEYS = PseudonymKeys.from_secret(bytes(32))
SHARED = Path(__file__).parents[3] / "shared" / "data"
TEXT_VRS = {"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"}
SECRET = b"FEATHERSTONE"
# Attributes by which the instance is judged before anything is removed.
JUDGED = {0x00080005, 0x00080008, 0x00080016, 0x00080064, 0x00280004, 0x00280301, 0x00280302}


def table() -> list[dict[str, str]]:
    """The rows of Table E.1-1 in the package."""
    text = resources.files("anonymizer.profiles").joinpath("ps315_e1_1.json").read_text("utf-8")
    rows: list[dict[str, str]] = json.loads(text)["rows"]
    return rows


def text_attributes() -> list[int]:
    """Every attribute of the dictionary with a text VR that an instance may have."""
    return [
        tag
        for tag, (vr, _vm, _name, _retired, keyword) in DicomDictionary.items()
        if vr in TEXT_VRS and 8 <= tag >> 16 < 0x7FE0 and keyword and tag not in JUDGED
    ]


def deidentified(ds: Dataset) -> bytes:
    """The output for ``ds``."""
    return deidentify_instance(part10(ds), basic_policy(), KEYS).data


def test_the_patients_name_in_every_text_attribute_of_the_dictionary() -> None:
    """Some 1,700 text attributes filled with the name: it survives in none."""
    ds = ct_instance()
    for tag in text_attributes():
        ds._dict[pydicom.tag.Tag(tag)] = raw_element(tag, DicomDictionary[tag][0], SECRET)
    assert len(text_attributes()) > 1500
    assert SECRET not in deidentified(ds)


@pytest.mark.parametrize("sequence", [0x00082218, 0x00400260, 0x00081140, 0x0040A170, 0x00189346])
def test_the_patients_name_in_every_text_attribute_inside_a_sequence(sequence: int) -> None:
    """The same two levels down, in sequences that are walked."""
    inner, outer, ds = Dataset(), Dataset(), ct_instance()
    for tag in text_attributes():
        inner._dict[pydicom.tag.Tag(tag)] = raw_element(tag, DicomDictionary[tag][0], SECRET)
    outer.add_new(sequence, "SQ", Sequence([inner]))
    ds.add_new(sequence, "SQ", Sequence([outer, inner]))
    assert SECRET not in deidentified(ds)


def test_every_uid_of_the_table_is_replaced() -> None:
    """Rows with action U, at top level."""
    original = "1.2.826.0.1.3680043.8.498.999.1"
    ds = ct_instance()
    uids = [
        int(row["tag"].replace(",", ""), 16)
        for row in table()
        if row["basic"] == "U" and int(row["tag"][:4], 16) >= 8
    ]
    for tag in uids:
        ds.add_new(tag, "UI", original)
    after = pydicom.dcmread(io.BytesIO(deidentified(ds)))
    assert len(uids) > 45
    for tag in uids:
        if tag in after:  # some stand in attributes that the dictionary does not know
            assert str(after[tag].value).startswith("2.25."), hex(tag)


def test_every_row_with_action_x_is_gone() -> None:
    """All attributes that the table removes, each with an innocent value."""
    ds = ct_instance()
    rows = [row for row in table() if row["basic"] == "X" and "rtn_long_modif_dates" not in row]
    single = [row["tag"].replace(",", "") for row in rows if "XX" not in row["tag"]]
    tags = [int(tag, 16) for tag in single if tag.isalnum() and len(tag) == 8]
    values = {"LO": "a", "SH": "a", "PN": "a^b", "ST": "a", "LT": "a", "UT": "a", "UC": "a",
              "CS": "A", "AE": "A", "DA": "20200101", "DT": "20200101", "TM": "101112",
              "UR": "urn:a", "AS": "010Y", "IS": "1", "DS": "1"}  # fmt: skip
    planted = []
    for tag in tags:
        vr = DicomDictionary.get(tag, ("",))[0]
        if tag >> 16 >= 8 and vr in values and tag not in (0x00120063,):
            ds.add_new(tag, vr, values[vr])
            planted.append(tag)
    after = pydicom.dcmread(io.BytesIO(deidentified(ds)))
    assert len(planted) > 220
    assert [hex(tag) for tag in planted if tag in after] == []


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="needs dicom3tools")
def test_output_for_a_valid_ct_is_valid(tmp_path: Path) -> None:
    """A plain CT and one full of identifiers: dciodvfy finds no error."""
    for name, data in (("plain", part10(ct_instance())), ("full", ct_with_planted_identity())):
        path = tmp_path / name
        path.write_bytes(deidentify_instance(data, basic_policy(), KEYS).data)
        assert errors_of(path) == set()


@pytest.mark.skipif(
    shutil.which("dciodvfy") is None or not SHARED.is_dir(), reason="needs dicom3tools and data"
)
@pytest.mark.parametrize(
    "path",
    [
        *sorted(SHARED.glob("ct_chest_cmb_crc_01068_demo/1-00[12].dcm")),
        *sorted(SHARED.glob("head_ct_mr_sr_adit_1005/*/*/*.dcm")),
        *sorted(SHARED.glob("seg_sr_highdicom/*_image*.dcm")),
        *sorted(SHARED.glob("wg04_modalities/[CM][TR]*")),
    ],
    ids=lambda path: path.name,
)
def test_deidentifying_adds_no_error(path: Path, tmp_path: Path) -> None:
    """Real CT, MR, DX and SEG: no error that the original did not have."""
    try:
        output = deidentify_instance(path, basic_policy(), KEYS).data
    except BurnedInText:
        pytest.skip("held because of its pixels")
    except Exception as error:
        if type(error).__name__ != "Unsupported":
            raise
        pytest.skip("no rules for this SOP Class")
    written = tmp_path / "out.dcm"
    written.write_bytes(output)
    assert errors_of(written) - errors_of(path) == set()
