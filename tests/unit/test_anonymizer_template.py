"""What varies in a series: settled by a rule or the long way, the output is that of each alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from anonymizer import Deidentifier
from anonymizer.errors import AnonymizerError, ResidualIdentifier
from anonymizer.options import Option
from anonymizer.profile import profile_with
from anonymizer.scan import Irregular
from tests.identified_ct import SERIES, STUDY_DATE, part10, raw_element
from tests.slice_series import assert_memory_changes_nothing, in_syntax, slice_of_series

RULES = {
    "AcquisitionDateTime": "TimeOfADay",
    "ContentTime": "Digits",
    "ImageComments": "Gone",
    "ImagePositionPatient": "Digits",
    "InstanceNumber": "Digits",
    "SliceLocation": "Digits",
    "SmallestImagePixelValue": "Words",
    "SOPInstanceUID": "OneUid",
    "SourceImageSequence": "References",
}
Change = Callable[[Dataset, int], None]


def rules_of(deidentifier: Deidentifier) -> dict[int, str]:
    """By tag, the rule for each attribute that varies."""
    (template,) = deidentifier.templates()
    return {step.tag: type(step.rule).__name__ for step in template.dataset.steps}


def reference(uid: str, **more: object) -> Dataset:
    """An item that refers to a CT slice."""
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CTImageStorage, uid
    for keyword, value in more.items():
        setattr(item, keyword, value)
    return item


def purpose() -> Dataset:
    """A coded purpose of reference."""
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator = "121311", "DCM"
    code.CodeMeaning = "Localizer"
    return code


def test_usual_attributes_have_rules() -> None:
    """UIDs, positions, times, references, binary numbers: none of them takes the long way."""
    made = assert_memory_changes_nothing([part10(slice_of_series(n)) for n in range(1, 5)])
    rules = rules_of(made)
    assert {keyword: rules[Tag(keyword)] for keyword in RULES} == RULES
    assert rules[Tag(0x0019, 0x1001)] == "Gone"


def raw(keyword: str, vr: str, *values: bytes) -> Change:
    """``keyword`` takes ``values`` in turn, byte for byte."""

    def change(ds: Dataset, number: int) -> None:
        tag = Tag(keyword)
        ds._dict[tag] = raw_element(int(tag), vr, values[number % len(values)])

    return change


def references(*counts: int, **more: object) -> Change:
    """Source Image Sequence with as many items, in turn."""

    def change(ds: Dataset, number: int) -> None:
        items = range(counts[number % len(counts)])
        ds.SourceImageSequence = [reference(f"{SERIES}.{number + k}", **more) for k in items]

    return change


def undefined_lengths(ds: Dataset, number: int) -> None:
    """As many scanners write sequences (PS3.5 7.5.1)."""
    items = Sequence([reference(f"{SERIES}.{number + 1}")])
    items[0].is_undefined_length_sequence_item = True
    ds.SourceImageSequence = items
    ds["SourceImageSequence"].is_undefined_length = True


def empty_reference(ds: Dataset, number: int) -> None:
    """An item without anything in it, every second time."""
    ds.SourceImageSequence = [reference(f"{SERIES}.{number}"), Dataset()][: 1 + number % 2]


def implementation(ds: Dataset, number: int) -> None:
    """File meta information that varies goes as a whole."""
    ds.file_meta.ImplementationVersionName = f"V{'1' * number}"
    ds.file_meta.PrivateInformationCreatorUID = f"{SERIES}.{number}"
    ds.file_meta.PrivateInformation = b"Featherstone" * number


def group_length(ds: Dataset, number: int) -> None:
    """A retired group length (PS3.5 7.2), and a wrong one."""
    ds._dict[Tag(0x00200000)] = raw_element(0x00200000, "UL", number.to_bytes(4, "little"))


def name_in_no_dictionary(ds: Dataset, number: int) -> None:
    """A name that only its VR gives away, and the same name in text that would stay."""
    ds._dict[Tag(0x00180001)] = raw_element(0x00180001, "PN", b"Othername^%d" % number)
    ds.SequenceName = "Othername" if number == 5 else "fl3d"


CHANGES: dict[str, Change] = {
    "time left empty": raw("ContentTime", "TM", b"101112.25", b"", b"1011"),
    "time that is none": raw("ContentTime", "TM", b"101112.25", b"Featherstone", b"10:11:12"),
    "several numbers": raw("SliceLocation", "DS", b"1\\2", b"-1.5e3 ", b"\\1", b" 1"),
    "number that is none": raw("InstanceNumber", "IS", b"1 ", b"2Featherstone ", b"3.0 "),
    "number of odd length": raw("InstanceNumber", "IS", b"1", b"12", b"123"),
    "binary of a wrong length": raw("SmallestImagePixelValue", "US", b"\1\0", b"", b"\1\0\2\0"),
    "date and time, short": raw("AcquisitionDateTime", "DT", STUDY_DATE.encode(), b"20240517101"),
    "date and time, offset": raw("AcquisitionDateTime", "DT", b"20240517101112.5+0100", b""),
    "date and time, fraction": raw("AcquisitionDateTime", "DT", b"20240517101112.5", b"2024"),
    "two dates and times": raw("AcquisitionDateTime", "DT", b"20240517101112\\20240517101113"),
    "another VR": raw("SliceLocation", "LO", b"Featherstone", b"1.5 "),
    "UID with a space": raw("SOPInstanceUID", "UI", b"1.2.3.4 ", b"1.2.3.5\0", b"1.2.3.66"),
    "UID that is none": raw("SOPInstanceUID", "UI", b"1.2.3.4\0", b"1.2.x\0", b"1.2.3\\1.2.4\0"),
    "references": references(1, 2, 3),
    "references, sometimes none": references(1, 0),
    "references with a purpose": references(1, 2, PurposeOfReferenceCodeSequence=[purpose()]),
    "references to a frame": references(1, 2, ReferencedFrameNumber="3"),
    "references with text": references(1, 2, ImageComments="Featherstone"),
    "reference of undefined length": undefined_lengths,
    "reference without content": empty_reference,
    "text that stays": raw("SequenceName", "SH", b"*ep_b0", b"*ep_b1000", b"*ep Quillon"),
    "text outside ASCII": raw("SequenceName", "SH", b"*ep_b0", b"\xe9p", b"\xe4\xe4"),
    "file meta information": implementation,
    "group length": group_length,
    "name in no dictionary": name_in_no_dictionary,
}


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_varies_comes_out_as_alone(change: Change, syntax: str) -> None:
    """Plain or odd, an attribute that varies is treated as in an instance of its own."""
    instances = []
    for number in range(1, 10):
        ds = slice_of_series(number)
        change(ds, number)
        instances.append(in_syntax(ds, syntax))
    assert_memory_changes_nothing(instances)


@pytest.mark.parametrize(
    "options",
    [
        frozenset({Option.RETAIN_UIDS}),
        frozenset({Option.RETAIN_UIDS, Option.RETAIN_MODIFIED_DATES}),
        frozenset({Option.RETAIN_FULL_DATES}),
        frozenset({Option.RETAIN_SAFE_PRIVATE, Option.CLEAN_DESCRIPTORS}),
        frozenset(),
    ],
    ids=lambda options: " ".join(sorted(option.value for option in options)) or "none",
)
def test_rules_follow_the_options(options: frozenset[Option]) -> None:
    """UIDs that stay, dates that go or stay: the same output and crosswalk as alone."""
    policy = profile_with(options)
    instances = []
    for number in range(1, 8):
        ds = slice_of_series(number)
        ds.SeriesDescription = f"Chest Featherstone {number}"
        instances.append(part10(ds))
    assert_memory_changes_nothing(instances, policy)


@pytest.mark.parametrize(
    ("cut", "tail"),
    [(0, b"Featherstone"), (0, bytes(2)), (-2, b""), (-140, b""), (-1, b"")],
    ids=["text behind", "padding behind", "two bytes short", "no pixels", "one byte short"],
)
def test_end_of_the_file_is_judged_as_alone(cut: int, tail: bytes) -> None:
    """What follows the frames is dropped, and frames cut short are refused, in a series too."""
    instances = [part10(slice_of_series(number)) for number in range(1, 5)]
    last = part10(slice_of_series(5))
    instances.append(last[: len(last) + cut] + tail)
    longer = slice_of_series(6)
    longer.PixelData += b"Featherstone behind the frame!"
    assert_memory_changes_nothing([*instances, part10(longer), part10(slice_of_series(7))])


@pytest.mark.parametrize("keyword", ["InstanceNumber", "SliceLocation"])
@pytest.mark.parametrize(
    "held", [b"12345678", b"+12345678 ", b"0012345678", b"1.2345678e7 ", b"1\\012345678"]
)
def test_a_patients_number_is_seen_in_a_series_as_alone(keyword: str, held: bytes) -> None:
    """The rule for digits compares integers too, in what varies from slice to slice."""
    number = raw(keyword, "DS" if keyword == "SliceLocation" else "IS", b"1 ", b"2 ", b"3 ", held)
    instances = []
    for count in range(9):
        ds = slice_of_series(count + 1, PatientID="0012345678")
        number(ds, count)
        instances.append(part10(ds))
    made = assert_memory_changes_nothing(instances)
    for data in instances:
        with contextlib.suppress(AnonymizerError):
            assert b"2345678" not in made.deidentify(data).header


@pytest.mark.parametrize("number", ["123456E2", "123456e2"])
@pytest.mark.parametrize("held", [b"123456E2", b"123456e2", b"12.\\123456E2"])
def test_a_number_that_looks_like_one_with_an_exponent_is_seen(number: str, held: bytes) -> None:
    """Whatever the case of its letter, in a series as alone."""
    change = raw("SliceLocation", "DS", b"1 ", b"2 ", b"3 ", held)
    instances = []
    for count in range(8):
        ds = slice_of_series(count + 1, PatientID=number)
        change(ds, count)
        instances.append(part10(ds))
    made = assert_memory_changes_nothing(instances)
    for data in instances[3::4]:
        with pytest.raises(ResidualIdentifier, match="SliceLocation"):
            made.deidentify(data)
    (template,) = made.templates()
    (digits,) = (step.rule for step in template.dataset.steps if step.tag == Tag("SliceLocation"))
    with pytest.raises(Irregular):
        digits.settled(held, 0, len(held), template.patient)


def test_instances_that_differ_in_nothing_but_their_uid_need_no_lesson() -> None:
    """A copy of an instance, and then one that is more different: both as alone."""
    one = part10(slice_of_series(1))
    assert_memory_changes_nothing([one, one, one, part10(slice_of_series(2)), one])
