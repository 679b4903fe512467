"""De-identification of whole instances, read back by pydicom and searched as bytes."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from anonymizer import PseudonymKeys, basic_policy, deidentify_instance, deidentify_series
from anonymizer.errors import (
    AnonymizerError,
    Rejected,
    ResidualIdentifier,
    Unreadable,
    Unsupported,
)
from tests.identified_ct import (
    ACCESSION,
    FRAME,
    JAPANESE,
    PATIENT_ID,
    ROOT,
    SECRETS,
    SERIES,
    STUDY_DATE,
    ct_bytes,
    ct_instance,
    ct_with_planted_identity,
    part10,
    raw_element,
)

KEYS = PseudonymKeys.from_secret(bytes(range(32)))
SHARED = Path(__file__).parents[3] / "shared" / "data"
SYNTAXES = SHARED / "ts_one_ct_15_syntaxes_cornerstone3d"


def deidentified(data: bytes) -> Dataset:
    """The output as pydicom reads it."""
    return pydicom.dcmread(io.BytesIO(deidentify_instance(data, basic_policy(), KEYS).data))


@pytest.mark.parametrize("secret", SECRETS)
def test_no_planted_identifier_is_left_in_the_bytes(secret: str) -> None:
    """Preamble, meta, nested, private, overlay, curve, padding, unlisted text: nothing is left."""
    data = ct_with_planted_identity()
    assert secret.encode().lower() in data.lower(), "the test plants what it looks for"
    output = deidentify_instance(data, basic_policy(), KEYS).data
    assert secret.encode().lower() not in output.lower()


def test_what_segmentation_needs_is_kept_unchanged() -> None:
    """Geometry, rescale, kernel, device and pixels are byte for byte the original's."""
    before, after = ct_instance(), deidentified(ct_bytes())
    for keyword in (
        "ImageType", "Modality", "Manufacturer", "KVP", "SliceThickness", "ConvolutionKernel",
        "PatientPosition", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing",
        "RescaleIntercept", "RescaleSlope", "RescaleType", "Rows", "Columns", "BitsStored",
        "InstanceNumber", "SeriesNumber", "StudyTime", "SOPClassUID", "PixelData",
    ):  # fmt: skip
        assert after[keyword].value == before[keyword].value, keyword


def test_output_says_what_was_done() -> None:
    """PatientIdentityRemoved, method, codes and the modified-dates flag (PS3.15 E.1.1)."""
    ds = deidentified(ct_bytes())
    assert ds.PatientIdentityRemoved == "YES"
    assert basic_policy().digest[:16] in ds.DeidentificationMethod
    codes = [item.CodeValue for item in ds.DeidentificationMethodCodeSequence]
    assert codes == ["113100", "113107"]
    assert ds.LongitudinalTemporalInformationModified == "MODIFIED"
    assert ds.PatientName == ds.PatientID + "^"
    assert str(ds.PatientID).startswith("ANON-")


def test_pseudonyms_hold_together_over_a_study() -> None:
    """Instances of one patient share patient, study, series, frame and shift; each is itself."""
    first, second = deidentified(ct_bytes(1)), deidentified(ct_bytes(2))
    for keyword in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        assert first[keyword].value == second[keyword].value
    assert first.StudyDate == second.StudyDate != STUDY_DATE
    assert first.SOPInstanceUID != second.SOPInstanceUID
    assert first.SOPInstanceUID == first.file_meta.MediaStorageSOPInstanceUID


def test_references_point_to_the_pseudonyms_of_what_they_pointed_to() -> None:
    """A nested reference to another instance is that instance's pseudonym."""
    ds = deidentified(ct_with_planted_identity(1))
    other = deidentified(ct_bytes(99))
    assert ds.ReferencedImageSequence[0].ReferencedSOPInstanceUID == other.SOPInstanceUID


def test_patients_without_an_id_stay_apart() -> None:
    """Two studies without PatientID are not made one patient."""
    one = deidentified(ct_bytes(PatientID=""))
    two = deidentified(ct_bytes(PatientID="", StudyInstanceUID=f"{ROOT}.9"))
    assert one.PatientID != two.PatientID


def test_issuer_tells_equal_patient_ids_apart() -> None:
    """The same number from two hospitals is two patients."""
    one, two = (deidentified(ct_bytes(IssuerOfPatientID=issuer)) for issuer in ("A1", "B2"))
    assert one.PatientID != two.PatientID


def test_keyed_pseudonyms_differ_between_secrets() -> None:
    """Another secret gives other pseudonyms, so they cannot be computed without it."""
    other = PseudonymKeys.from_secret(b"\xff" * 32)
    data = ct_bytes()
    one = deidentify_instance(data, basic_policy(), KEYS)
    two = deidentify_instance(data, basic_policy(), other)
    assert one.sop_instance_uid != two.sop_instance_uid
    assert one.original.pseudonym != two.original.pseudonym


def test_local_code_goes_and_published_code_stays() -> None:
    """A local scheme names the hospital; the published one is vocabulary, less the name in it."""
    ds = deidentified(ct_with_planted_identity())
    assert [item.CodeValue for item in ds.ProcedureCodeSequence] == ["T-D3000"]
    assert ds.ProcedureCodeSequence[0].CodeMeaning == "T-D3000"
    assert ds.AnatomicRegionSequence[0].CodeMeaning == "Chest"


def test_identifier_in_a_multi_valued_code_string_takes_only_that_value() -> None:
    """ImageType is Type 1: the name in it goes, the rest stays."""
    ds = deidentified(ct_with_planted_identity())
    assert list(ds.ImageType) == ["ORIGINAL", "PRIMARY", "AXIAL"]


def test_date_time_keeps_its_time_and_loses_its_offset() -> None:
    """DT is shifted like DA; the offset from UTC tells where the patient was."""
    ds = deidentified(ct_bytes(TimezoneOffsetFromUTC="+0200"))
    assert ds.AcquisitionDateTime == f"{ds.StudyDate}101112.250000"
    assert "TimezoneOffsetFromUTC" not in ds


def test_unparsable_date_becomes_empty() -> None:
    """A date that cannot be shifted is emptied, never passed on."""
    ds = ct_instance()
    ds._dict[pydicom.tag.Tag("ContentDate")] = raw_element(0x00080023, "DA", b"May 2024")
    assert deidentified(part10(ds)).ContentDate == ""


def test_value_disguised_under_another_vr_is_not_kept() -> None:
    """A name written as a kept attribute with a foreign VR goes."""
    ds = ct_instance()
    tag = pydicom.tag.Tag("SliceThickness")
    ds._dict[tag] = raw_element(0x00180050, "LO", b"Overbrook ")
    assert "SliceThickness" not in deidentified(part10(ds))


@pytest.mark.parametrize("keyword", ["SeriesNumber", "AcquisitionNumber", "InstanceNumber"])
def test_patient_id_in_a_label_is_replaced_and_the_image_stays(keyword: str) -> None:
    """Six digits by which the patient is known are no count: 0 stands in for them."""
    data = ct_bytes(PatientID="123456", StudyID="123456", **{keyword: "123456"})
    assert deidentified(data)[keyword].value == 0
    assert b"123456" not in deidentify_instance(data, basic_policy(), KEYS).header
    other = deidentified(ct_bytes(StudyID="123457", **{keyword: "123456"}))
    assert other[keyword].value == 123456


def test_patient_id_in_a_number_that_measures_holds_the_instance() -> None:
    """Nothing is made up in the place of a slope: a person looks at it."""
    with pytest.raises(ResidualIdentifier, match="RescaleSlope"):
        deidentified(ct_bytes(StudyID="123456", RescaleSlope="123456"))


NUMBERS_THAT_ARE_ONE = [
    ("0012345678", b"12345678"),
    ("0012345678", b"+12345678 "),
    ("12345678", b"0012345678"),
    ("12-34-5678", b"12345678"),
]


@pytest.mark.parametrize("keyword", ["SeriesNumber", "AcquisitionNumber", "InstanceNumber"])
@pytest.mark.parametrize(("patient_id", "held"), NUMBERS_THAT_ARE_ONE)
def test_the_same_integer_in_a_label_is_replaced(
    keyword: str, patient_id: str, held: bytes
) -> None:
    """Zeros before it, a sign or dashes do not make another number of a patient's number."""
    ds = ct_instance(PatientID=patient_id)
    ds._dict[pydicom.tag.Tag(keyword)] = raw_element(int(pydicom.tag.Tag(keyword)), "IS", held)
    data = part10(ds)
    assert deidentified(data)[keyword].value == 0
    assert b"12345678" not in deidentify_instance(data, basic_policy(), KEYS).header


@pytest.mark.parametrize("held", [b"12345678.0", b"1.2345678E7 ", b"+0012345678 ", b"-12345678."])
def test_the_same_integer_in_a_number_that_measures_holds_the_instance(held: bytes) -> None:
    """However a decimal string writes it; another number of the same digits stays."""
    ds = ct_instance(PatientID="0012345678")
    tag = pydicom.tag.Tag("RescaleSlope")
    ds._dict[tag] = raw_element(int(tag), "DS", held)
    with pytest.raises(ResidualIdentifier, match="RescaleSlope"):
        deidentified(part10(ds))
    ds._dict[tag] = raw_element(int(tag), "DS", b"1234.5678 ")
    assert deidentified(part10(ds)).RescaleSlope == 1234.5678


@pytest.mark.parametrize(
    ("patient_id", "held"),
    [
        ("9434765919", "943 476 5919 KNEE"),
        ("943-476-5919", "knee 9434765919"),
        ("12-34-56", "12 34 56 KNEE"),
        ("AB-12-34", "ab 12.34"),
        ("020 7946 0958", "(020) 7946-0958"),
    ],
)
def test_a_number_is_found_however_it_is_grouped(patient_id: str, held: str) -> None:
    """In text that would stay: what stands between the digits does not hide them."""
    ds = deidentified(ct_bytes(PatientID=patient_id, SoftwareVersions=["v1", held]))
    assert "SoftwareVersions" not in ds or ds.SoftwareVersions == ""
    assert deidentified(ct_bytes(PatientID=patient_id, SoftwareVersions="v1 94 34")).get(
        "SoftwareVersions"
    )


def test_short_number_is_chance_in_a_number_and_telling_in_text() -> None:
    """Five digits: a series number stays, a whole word in text that would stay goes."""
    ds = deidentified(
        ct_bytes(StudyID="12345", SeriesNumber="12345", SoftwareVersions=["v1", "for 12345"])
    )
    assert ds.SeriesNumber == 12345
    assert "12345" not in str(ds.get("SoftwareVersions"))
    assert "ConvolutionKernel" in ds


def test_text_in_a_number_is_not_kept() -> None:
    """A decimal string that is no number goes, though the attribute is kept."""
    ds = ct_instance()
    ds._dict[pydicom.tag.Tag("KVP")] = raw_element(0x00180060, "DS", b"O. Brook")
    assert deidentified(part10(ds)).get("KVP") in (None, "")


@pytest.mark.parametrize(
    ("name", "charset"),
    [
        ("Müller^Jürgen", "ISO_IR 100"),
        (JAPANESE, ["", "ISO 2022 IR 87"]),
        ("Люксембург^Жанна", "ISO_IR 144"),
        ("Wang^XiaoDong=王^小东", "GB18030"),
        ("Müller^Jürgen", "ISO_IR 192"),
    ],
)
def test_name_in_any_character_set_is_cleaned_from_kept_text(
    name: str, charset: str | list[str]
) -> None:
    """The name inside a kept attribute is recognised in the file's own character set."""
    given = name.split("=")[-1].split("^")[1]
    ds = ct_instance(name=name, charset=charset, Manufacturer=f"Fa. {given}")
    data = part10(ds)
    after = deidentified(data)
    assert after.Manufacturer == ""
    assert ds.PatientName.encode() not in deidentify_instance(data, basic_policy(), KEYS).data


def test_name_written_without_its_umlaut_is_recognised() -> None:
    """Müller is also MUELLER and Muller."""
    for spelling in ("MUELLER Kernel", "muller", "Jürgen M."):
        after = deidentified(ct_bytes(name="Müller^Jürgen", ConvolutionKernel=spelling))
        assert "ConvolutionKernel" not in after


def test_unknown_character_set_is_refused() -> None:
    """A name that cannot be read cannot be searched for."""
    ds = ct_instance(charset=None)
    ds._dict[pydicom.tag.Tag("SpecificCharacterSet")] = raw_element(0x00080005, "CS", b"EBCDIC")
    with pytest.warns(UserWarning, match="Unknown encoding"):
        data = part10(ds)
    with pytest.raises(Unsupported, match="SpecificCharacterSet"):
        deidentify_instance(data, basic_policy(), KEYS)


@pytest.mark.parametrize(
    "syntax",
    [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless],
)
def test_transfer_syntaxes_give_the_same_image(syntax: str) -> None:
    """Every syntax passes; big endian and deflated leave as Explicit VR Little Endian."""
    ds = pydicom.dcmread(io.BytesIO(ct_with_planted_identity(tail=b"")))
    ds.PixelData = ds.PixelData[:128]
    pixels = ds.pixel_array
    if syntax == RLELossless:
        ds.compress(RLELossless)
    elif syntax == ExplicitVRBigEndian:
        ds.PixelData = pixels.astype(">u2").tobytes()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.decode()
    again = Dataset(ds)  # without the memory of how it was encoded
    again.file_meta, again.preamble = ds.file_meta, ds.preamble
    buffer = io.BytesIO()
    implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
    pydicom.dcmwrite(buffer, again, implicit_vr=implicit, little_endian=little)
    output = deidentify_instance(buffer.getvalue(), basic_policy(), KEYS).data
    after = pydicom.dcmread(io.BytesIO(output))
    kept = syntax in (ImplicitVRLittleEndian, RLELossless)
    assert after.file_meta.TransferSyntaxUID == (syntax if kept else ExplicitVRLittleEndian)
    assert np.array_equal(after.pixel_array, pixels)
    assert after.PixelSpacing == [0.75, 0.75]
    assert all(secret.encode().lower() not in output.lower() for secret in SECRETS)


def test_compressed_fragments_pass_byte_for_byte() -> None:
    """Encapsulated pixel data is not touched."""
    ds = ct_instance()
    ds.compress(RLELossless)
    assert deidentified(part10(ds)).PixelData == ds.PixelData


def test_identifier_inside_a_compressed_stream_is_found() -> None:
    """A JPEG comment with the patient's name does not leave unseen."""
    ds = ct_instance()
    ds.compress(RLELossless)
    ds.PixelData = ds.PixelData.replace(bytes(32), b"comment: featherstone^quillon...", 1)
    with pytest.raises(ResidualIdentifier, match="PixelData"):
        deidentify_instance(part10(ds), basic_policy(), KEYS)


def test_deflate_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deflated instance is not inflated without limit."""
    monkeypatch.setattr("anonymizer.part10.MAX_INFLATED_BYTES", 1 << 20)
    ds = ct_instance()
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    meta = part10(ct_instance())[:132]
    file_meta = io.BytesIO()
    pydicom.filewriter.write_file_meta_info(file_meta, ds.file_meta, enforce_standard=False)
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = deflater.compress(bytes(1 << 24)) + deflater.flush()
    with pytest.raises(Unreadable, match="deflated"):
        deidentify_instance(meta + file_meta.getvalue() + bomb, basic_policy(), KEYS)


@pytest.mark.parametrize("slow", [False, True])
def test_a_value_that_swallowed_the_patient_is_unreadable(slow: bool) -> None:
    """A kept value whose wrong length takes in the next elements would carry the name out."""
    ds = ct_instance()
    ds.Manufacturer = "ACME SCANNERS "
    data = bytearray(part10(ds))
    length = data.index(b"ACME SCANNERS ") - 2
    after_name = data.index(b"\x10\x00\x20\x00LO", length)  # PatientID, the element after the name
    data[length : length + 2] = (after_name - length - 2).to_bytes(2, "little")
    with pytest.raises(Unreadable, match="NUL before its end"):
        if slow:
            deidentify_instance(bytes(data), basic_policy(), KEYS)
        else:
            list(deidentify_series([part10(ds), bytes(data)], basic_policy(), KEYS))


@pytest.mark.parametrize("keep", [0, 100, 131, 140, 300, 600, -1, -2])
def test_truncated_instance_is_unreadable(keep: int) -> None:
    """A cut anywhere is an error, never a shorter output."""
    with pytest.raises(Unreadable):
        deidentify_instance(ct_bytes()[:keep], basic_policy(), KEYS)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), value=st.integers(0, 255))
def test_damaged_instance_is_an_error_of_ours_or_leaks_nothing(
    data: st.DataObject, value: int
) -> None:
    """One wrong byte anywhere but in the name itself: a named error, or still no identifier."""
    instance = bytearray(ct_with_planted_identity())
    # Where the patient's name is stated; damaged there, nobody can know what to look for.
    name = instance.index(b"PN\x14\x00Featherstone^Quillon")
    places = st.integers(132, 2000).filter(lambda place: not name - 4 <= place < name + 24)
    instance[data.draw(places)] = value
    try:
        output = deidentify_instance(bytes(instance), basic_policy(), KEYS).data
    except AnonymizerError:
        return
    assert b"Featherstone" not in output
    assert b"Overbrook" not in output


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID"])
def test_instance_without_study_or_series_is_rejected(keyword: str) -> None:
    """What belongs to no series cannot be given back to one."""
    ds = ct_instance()
    delattr(ds, keyword)
    with pytest.raises(Rejected, match=keyword):
        deidentify_instance(part10(ds), basic_policy(), KEYS)


def test_unknown_sop_class_is_refused() -> None:
    """No rules, no output."""
    with pytest.raises(Unsupported, match="SOP Class"):
        deidentify_instance(ct_bytes(SOPClassUID=f"{ROOT}.66"), basic_policy(), KEYS)


def test_deidentifying_twice_is_stable() -> None:
    """A second pass changes names of things only: same attributes, again pseudonymous."""
    once = deidentify_instance(ct_with_planted_identity(), basic_policy(), KEYS).data
    first, second = pydicom.dcmread(io.BytesIO(once)), deidentified(once)
    assert list(first.keys()) == list(second.keys())
    assert second.PatientID != first.PatientID
    assert second.PixelData == first.PixelData


def test_nothing_shown_by_repr_or_error_identifies_the_patient() -> None:
    """What may end up in a log holds no value of the patient."""
    result = deidentify_instance(ct_with_planted_identity(), basic_policy(), KEYS)
    shown = repr(result) + repr(KEYS)
    assert not any(secret in shown for secret in SECRETS)
    assert PATIENT_ID not in shown
    with pytest.raises(ResidualIdentifier) as caught:
        deidentify_instance(ct_bytes(IssuerOfPatientID="x", PatientID="6234567",
                                     ExposureTime="6234567"), basic_policy(), KEYS)  # fmt: skip
    assert "6234567" not in str(caught.value) + caught.value.remedy
    assert "ExposureTime" in str(caught.value)


def test_original_identity_is_collected() -> None:
    """What the crosswalk needs: header without pixels, UIDs, dates, shift."""
    original = deidentify_instance(ct_with_planted_identity(), basic_policy(), KEYS).original
    header = pydicom.dcmread(io.BytesIO(original.header))
    assert header.PatientID == PATIENT_ID
    assert header.AccessionNumber == ACCESSION
    assert "PixelData" not in header
    assert {f"{SERIES}.1", f"{SERIES}.99", FRAME} <= set(original.uids)
    assert STUDY_DATE in original.dates
    assert -3650 <= original.shift_days < 0


def test_series_is_deidentified_lazily() -> None:
    """One instance in, one out: a long series is never in memory at once."""
    taken: list[int] = []

    def instances() -> object:
        for number in (1, 2, 3):
            taken.append(number)
            yield ct_bytes(number)

    results = deidentify_series(instances(), basic_policy(), KEYS)  # type: ignore[arg-type]
    next(results)
    assert taken == [1]
    assert len(list(results)) == 2


@pytest.mark.skipif(not SYNTAXES.is_dir(), reason="needs ../shared/data")
@pytest.mark.parametrize("path", sorted(SYNTAXES.glob("CTImage.dcm*")), ids=lambda p: p.name[-30:])
def test_real_ct_in_every_transfer_syntax(path: Path) -> None:
    """One GE slice in 15 syntaxes: de-identified, and its pixels are the same."""
    before = pydicom.dcmread(path)
    after = deidentified(path.read_bytes())
    assert b"MISTER" not in after.PatientName.original_string
    if before.file_meta.TransferSyntaxUID.is_encapsulated:
        assert after.PixelData == before.PixelData
    else:
        assert np.array_equal(after.pixel_array, before.pixel_array)
    assert not any(element.tag.is_private for element in after.iterall())
