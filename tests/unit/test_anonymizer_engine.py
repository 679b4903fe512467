"""The fast engine: two readers that agree, and a memory of the series that changes no byte."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from anonymizer import Deidentifier, basic_policy, deidentify_instance
from anonymizer.errors import AnonymizerError
from anonymizer.part10 import read_instance
from anonymizer.scan import Irregular, scan_meta
from anonymizer.series import REMEMBERED_SERIES
from anonymizer.verify import may_hold, plain_texts
from tests.identified_ct import (
    PATIENT_ID,
    SECRETS,
    SERIES,
    ct_instance,
    ct_with_planted_identity,
    part10,
    raw_element,
)
from tests.slice_series import (
    KEYS,
    assert_memory_changes_nothing,
    in_syntax,
    outcome,
    slice_of_series,
)

SHARED = Path(__file__).parents[3] / "shared" / "data"
FILES = sorted(path for path in SHARED.rglob("*") if path.is_file()) if SHARED.is_dir() else []
PYDICOM_FILES = sorted((Path(pydicom.__file__).parent / "data" / "test_files").rglob("*.dcm"))
MAX_BYTES = 8 << 20


@pytest.mark.parametrize("path", PYDICOM_FILES + FILES, ids=lambda path: path.name[-40:])
def test_both_readers_read_the_same(path: Path) -> None:
    """What the fast reader reads, pydicom reads: same elements, same pixels, same header."""
    if path.stat().st_size > MAX_BYTES:
        pytest.skip("large")
    data = path.read_bytes()
    try:
        fast = read_instance(data, pixels_required=False)
    except AnonymizerError as error:
        with pytest.raises(type(error)):
            read_instance(data, pixels_required=False, plain=False)
        return
    slow = read_instance(data, pixels_required=False, plain=False)
    assert fast.elements == slow.elements
    assert bytes(fast.pixel_data) == bytes(slow.pixel_data)
    assert (fast.header, fast.sop_class_uid, fast.sop_instance_uid, fast.transfer_syntax_uid) == (
        slow.header, slow.sop_class_uid, slow.sop_instance_uid, slow.transfer_syntax_uid,
    )  # fmt: skip


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless])
def test_plain_syntaxes_are_read_fast(syntax: str) -> None:
    """The common syntaxes need no pydicom: the places of their elements are known."""
    assert read_instance(in_syntax(slice_of_series(1), syntax)).places


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless])
def test_memory_of_a_series_changes_no_byte(syntax: str) -> None:
    """With and without what was learned from other slices: the same output and crosswalk."""
    made = assert_memory_changes_nothing(
        [in_syntax(slice_of_series(number), syntax) for number in range(1, 9)]
    )
    assert made.reused >= 4, "the test is about the fast way"
    (template,) = made.templates()
    assert template.deidentified(in_syntax(slice_of_series(9), syntax)) is not None


@pytest.mark.parametrize(
    "odd",
    [
        {"name": "Otherwise^Somebody"},
        {"PatientID": "MRN-000001"},
        {"StudyDate": "20240518"},
        {"charset": "ISO_IR 192"},
        {"ImageType": ["DERIVED", "SECONDARY", "AXIAL"]},
        {"BurnedInAnnotation": "YES"},
        {"Manufacturer": "Featherstone Ltd"},
        {"SeriesInstanceUID": f"{SERIES}.4.4"},
        {"SoftwareVersions": "new"},
        {"PixelRepresentation": 1},
        {"Rows": 16},
    ],
    ids=lambda odd: next(iter(odd)),
)
def test_an_instance_that_differs_is_treated_for_itself(odd: dict[str, object]) -> None:
    """Another patient, date, character set, kind of image or size in the middle of a series."""
    instances = [part10(slice_of_series(number)) for number in range(1, 5)]
    instances.append(part10(slice_of_series(5, **odd)))
    instances += [part10(slice_of_series(number)) for number in range(6, 9)]
    assert_memory_changes_nothing(instances)


def test_series_in_which_nothing_recurs_is_still_right() -> None:
    """Patients, dates and kinds in turn: no template helps, no output changes."""
    assert_memory_changes_nothing(
        [
            part10(slice_of_series(n, PatientID=f"P-{n % 3:05d}", StudyDate=f"2024051{n % 2}"))
            for n in range(1, 12)
        ]
    )


def test_series_in_turns_are_remembered_side_by_side() -> None:
    """Three series of a study whose instances come mixed: most are made from what was learned."""
    instances = [
        part10(slice_of_series(n, SeriesInstanceUID=f"{SERIES}.{n % 3}")) for n in range(1, 31)
    ]
    made = assert_memory_changes_nothing(instances)
    assert made.reused >= 15
    assert len(made.templates()) == 3


def test_memory_of_many_series_is_bounded() -> None:
    """More series than are remembered: the oldest goes, the output stays right."""
    count = REMEMBERED_SERIES + 2
    instances = [
        part10(slice_of_series(n, SeriesInstanceUID=f"{SERIES}.{n % count}"))
        for n in range(1, 3 * count)
    ]
    made = assert_memory_changes_nothing(instances)
    assert len(made.templates()) <= REMEMBERED_SERIES


def test_new_date_in_what_varies_is_looked_for() -> None:
    """After midnight AcquisitionDateTime brings a date that nothing else states."""
    instances = [part10(slice_of_series(number)) for number in range(1, 5)]
    late = slice_of_series(5)
    late.AcquisitionDateTime = "20240519000001"
    late.ImageComments = "done 20240519"
    assert_memory_changes_nothing([*instances, part10(late)])


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damage_in_a_series_is_judged_as_alone(data: st.DataObject) -> None:
    """Any bytes changed anywhere: the same output or the same error as without the series."""
    series = [part10(slice_of_series(number)) for number in range(1, 4)]
    deidentifier = Deidentifier(basic_policy(), KEYS)
    for one in series:
        deidentifier.deidentify(one)
    damaged = bytearray(part10(slice_of_series(4)))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(damaged) - 1))
        damaged[place] = data.draw(st.integers(0, 255))
    alone = outcome(lambda: deidentify_instance(bytes(damaged), basic_policy(), KEYS))
    assert outcome(lambda: deidentifier.deidentify(bytes(damaged))) == alone


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_header_is_read_alike_or_not_at_all(data: st.DataObject) -> None:
    """What the fast reader makes of damaged bytes is what pydicom makes of them, or is refused."""
    damaged = bytearray(ct_with_planted_identity())
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(132, 2200))] = data.draw(st.integers(0, 255))
    try:
        fast = read_instance(bytes(damaged))
    except AnonymizerError:
        return
    if fast.places:
        try:
            slow = read_instance(bytes(damaged), plain=False)
        except AnonymizerError:  # a character set on which pydicom's reader gives up
            with pytest.raises(AnonymizerError):
                deidentify_instance(bytes(damaged), basic_policy(), KEYS)
            return
        assert fast.elements == slow.elements
        assert bytes(fast.pixel_data) == bytes(slow.pixel_data)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_planted_identifiers_never_leave_a_series(data: st.DataObject) -> None:
    """Random bytes inserted, removed or doubled: an error of ours, or no planted identifier."""
    deidentifier = Deidentifier(basic_policy(), KEYS)
    for number in (1, 2, 3):
        deidentifier.deidentify(ct_with_planted_identity(number))
    whole = ct_with_planted_identity(4)
    name = whole.index(b"PN\x14\x00Featherstone^Quillon")
    place = data.draw(st.integers(132, 2200).filter(lambda at: not name - 40 <= at < name + 60))
    width = data.draw(st.integers(0, 12))
    damaged = whole[:place] + data.draw(st.binary(max_size=12)) + whole[place + width :]
    try:
        output = deidentifier.deidentify(damaged).data.lower()
    except AnonymizerError:
        return
    assert b"featherstone" not in output
    assert b"overbrook" not in output


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("unknown VR", (b"CS\x02\x00CT", b"C?\x02\x00CT")),
        ("UN with items", (b"\x08\x00\x12\x21SQ", b"\x08\x00\x12\x21UN")),
        ("length past the end", (b"CS\x02\x00CT", b"CS\xff\x7fCT")),
    ],
)
def test_oddities_are_left_to_pydicom(name: str, damage: tuple[bytes, bytes]) -> None:
    """The fast reader declines what is not plain."""
    data = part10(slice_of_series(1))
    assert data.count(damage[0]) == 1, name
    with contextlib.suppress(AnonymizerError):
        assert not read_instance(data.replace(*damage)).places


@pytest.mark.parametrize("syntax", [ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_rare_syntaxes_keep_the_long_way(syntax: str) -> None:
    """Big endian and deflated instances of a series come out as they do alone."""
    instances = []
    for number in (1, 2, 3):
        ds = slice_of_series(number)
        del ds.SmallestImagePixelValue
        instances.append(in_syntax(ds, syntax))
    made = assert_memory_changes_nothing(instances)
    assert not made.templates()


def test_elements_out_of_order_are_left_to_pydicom() -> None:
    """Tags must ascend for the fast reader; pydicom sorts the rest out."""
    ds = ct_instance()
    data = part10(ds)
    study = data.index(b"\x08\x00\x20\x00DA")
    series = data.index(b"\x08\x00\x21\x00DA")
    swapped = data[:study] + data[series : series + 16] + data[study : study + 16]
    swapped += data[series + 16 :]
    assert len(swapped) == len(data)
    assert not read_instance(swapped).places


def test_meta_cut_short_is_irregular() -> None:
    """A length beyond the file is no reason to guess."""
    data = part10(ct_instance())
    with pytest.raises(Irregular):
        scan_meta(data[:170])


def test_pixels_are_not_copied() -> None:
    """The output's pixel data is a view of the input."""
    data = part10(slice_of_series(1))
    result = deidentify_instance(data, basic_policy(), KEYS)
    assert isinstance(result.pixel_data, memoryview)
    assert result.pixel_data.obj is data
    assert result.data == result.header + bytes(result.pixel_data)


def test_search_of_the_bytes_finds_what_the_search_of_values_finds() -> None:
    """Every identifier, in any case, anywhere; a longer one is found by the shorter in it."""
    identifiers = deidentified_identifiers()
    texts = plain_texts(identifiers)
    for secret in SECRETS:
        assert may_hold(b"\0\1 x" + secret.upper().encode() + b"y", texts) == any(
            text in secret.lower().encode() for text in texts
        )
    assert may_hold(f"id {PATIENT_ID}".encode(), texts)
    assert not may_hold(struct.pack("<4L", 1, 2, 3, 4), texts)


def deidentified_identifiers() -> object:
    """The identifiers of the planted CT."""
    from anonymizer.identity import identifiers_of

    return identifiers_of(read_instance(ct_with_planted_identity()).elements)


def test_disguised_name_in_what_varies_is_not_copied() -> None:
    """A decimal string that suddenly holds the patient's number stays behind or is refused."""
    instances = [part10(slice_of_series(number, AccessionNumber="6234567")) for number in (1, 2, 3)]
    last = slice_of_series(4, AccessionNumber="6234567")
    last._dict[pydicom.tag.Tag("SliceLocation")] = raw_element(0x00201041, "DS", b"6234567 ")
    assert_memory_changes_nothing([*instances, part10(last)])
