"""The way back for whatever is derived from our instances, by whatever program."""

from __future__ import annotations

import functools
import io
import itertools
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from anonymizer import (
    Crosswalk,
    PseudonymKeys,
    basic_policy,
    check_released,
    deidentify_instance,
    reidentify_object,
)
from anonymizer.errors import PseudonymRemains, ReferenceMismatch, Unsupported
from anonymizer.profile import patient_study_attributes
from anonymizer.uids import has_form_of_pseudonym, pseudonymous_uid
from tests.derived_objects import (
    MAKERS,
    encapsulated_pdf,
    measurement_report,
    saved,
    segmentation,
    segmentation_dataset,
    structure_set,
)
from tests.identified_ct import (
    FRAME,
    JAPANESE,
    PATIENT_ID,
    ROOT,
    SERIES,
    STUDY,
    ct_instance,
    part10,
)

KEYS = PseudonymKeys.from_secret(bytes(range(32)))
SOURCES = {f"{SERIES}.{number}" for number in (1, 2, 3)}
CHINESE = "Wang^XiaoDong=王^小东"
PATIENTS: dict[str, dict[str, Any]] = {
    "ASCII": {"charset": None},
    "Latin-1": {"name": "Müller^Jürgen", "charset": "ISO_IR 100"},
    "Japanese": {"name": JAPANESE, "charset": ["", "ISO 2022 IR 87"]},
    "Chinese": {"name": CHINESE, "charset": "GB18030"},
}
NEEDS_DCIODVFY = pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="needs dicom3tools")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@functools.cache
def series(patient: str) -> tuple[tuple[bytes, ...], tuple[bytes, ...], Crosswalk]:
    """Three instances of one patient, de-identified, and their crosswalk as the vault keeps it."""
    before = tuple(
        part10(ct_instance(number, **PATIENTS[patient], StudyDescription="Thorax"))
        for number in (1, 2, 3)
    )
    results = [deidentify_instance(data, basic_policy(), KEYS) for data in before]
    crosswalk = Crosswalk.collect(result.original for result in results)
    return before, tuple(r.data for r in results), Crosswalk.from_bytes(crosswalk.to_bytes())


@functools.cache
def derived(kind: str, patient: str = "Latin-1") -> bytes:
    """An object of this kind made from the de-identified series."""
    with tempfile.TemporaryDirectory() as folder:
        return MAKERS[kind]([read(data) for data in series(patient)[1]], Path(folder))


def read(data: bytes) -> Dataset:
    """As pydicom reads it."""
    return pydicom.dcmread(io.BytesIO(data))


def siblings_of(data: bytes) -> list[str]:
    """The other objects of the same release that a report names: its segmentation."""
    named = (
        item
        for item in read(data).iterall()
        if item.keyword == "ReferencedSOPInstanceUID" and not has_form_of_pseudonym(item.value)
    )
    return sorted({str(element.value) for element in named})


def referenced(ds: Dataset) -> set[str]:
    """Every instance that it names, at every depth."""
    return {str(e.value) for e in ds.iterall() if e.keyword == "ReferencedSOPInstanceUID"}


def raw(ds: Dataset) -> dict[int, bytes]:
    """Bytes of the Patient and Study modules as they stand in the file."""
    shared = patient_study_attributes()
    return {
        int(tag): (entry.value or b"").rstrip(b"\0 ")
        for tag, entry in ds.items()
        if tag in shared and entry.VR != "SQ" and isinstance(entry.value, bytes | None)
    }


@pytest.mark.parametrize("patient", PATIENTS)
@pytest.mark.parametrize("kind", MAKERS)
def test_derived_object_gets_its_patient_back(kind: str, patient: str) -> None:
    """Patient and study byte for byte, references and frame original, no trace of the detour."""
    before, _, crosswalk = series(patient)
    pseudonymous = derived(kind, patient)
    siblings = siblings_of(pseudonymous)
    output = reidentify_object(pseudonymous, crosswalk)
    check_released(output, crosswalk, siblings=siblings)
    original, away, back = read(before[0]), read(pseudonymous), read(output)
    assert raw(back) == raw(original)
    assert back.PatientName == original.PatientName
    assert back.get("SpecificCharacterSet") == original.get("SpecificCharacterSet")
    named = referenced(back) - set(siblings) - {STUDY}
    assert named and named <= SOURCES
    assert {pseudonymous_uid(uid, KEYS.uid) for uid in named} <= referenced(away)
    assert back.get("FrameOfReferenceUID", FRAME) in (FRAME, "")
    assert not any(uid.encode() in output for uid in crosswalk.originals)
    for keyword in ("PatientIdentityRemoved", "DeidentificationMethod",
                    "DeidentificationMethodCodeSequence"):  # fmt: skip
        assert keyword not in back


@pytest.mark.parametrize("kind", MAKERS)
def test_what_is_new_in_a_derived_object_stays(kind: str) -> None:
    """Its own UIDs, its pixels, its transfer syntax; a second try makes the same bytes."""
    crosswalk = series("Latin-1")[2]
    pseudonymous = derived(kind)
    output = reidentify_object(pseudonymous, crosswalk)
    assert reidentify_object(pseudonymous, crosswalk) == output
    assert reidentify_object(output, crosswalk) == output
    away, back = read(pseudonymous), read(output)
    assert back.file_meta.TransferSyntaxUID == away.file_meta.TransferSyntaxUID
    own = [uid for e in away.iterall() if e.VR == "UI" and e.value and not e.tag.is_private
           for uid in ([e.value] if isinstance(e.value, str) else e.value)
           if not has_form_of_pseudonym(uid)]  # fmt: skip
    there = {uid for e in back.iterall() if e.VR == "UI" and e.value
             for uid in ([e.value] if isinstance(e.value, str) else e.value)}  # fmt: skip
    assert len(own) > 3
    assert set(own) <= there
    for keyword in ("PixelData", "FloatPixelData", "EncapsulatedDocument"):
        if keyword in away:
            assert back[keyword].value == away[keyword].value


@NEEDS_DCIODVFY
@pytest.mark.parametrize("kind", MAKERS)
def test_returning_adds_no_error(kind: str, tmp_path: Path) -> None:
    """dciodvfy finds nothing in the returned object that it did not find before."""
    found = []
    for name, data in (
        ("before", derived(kind)),
        ("after", reidentify_object(derived(kind), series("Latin-1")[2])),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        report = subprocess.run(["dciodvfy", str(path)], capture_output=True, check=False).stderr
        lines = report.decode("latin-1").splitlines()
        found.append({line for line in lines if line.startswith("Error")})
    assert found[1] - found[0] == set()


def test_a_corrected_segmentation_keeps_what_the_person_changed() -> None:
    """New segment, words, creator and private attributes stay; private pseudonyms do not."""
    back = read(reidentify_object(derived("SEG, edited by hand"), series("Latin-1")[2]))
    away = read(derived("SEG, edited by hand"))
    assert back.SOPInstanceUID == away.SOPInstanceUID
    assert back.SeriesDescription == "corrected by hand"
    assert back.ContentCreatorName == "Corrector^Chris"
    assert [segment.SegmentLabel for segment in back.SegmentSequence] == ["Lung", "Node"]
    assert back.SegmentSequence[1].TrackingUID == away.SegmentSequence[1].TrackingUID
    block = back.private_block(0x0099, "EDITOR 9")
    assert block[0x01].value == "brush 3 mm"
    assert block[0x02].value == f"{SERIES}.1"  # a reference like any other
    assert 0x03 not in block  # holds the pseudonym, in nobody knows what form
    assert block[0x04].value == b"\x01\x02\x03\x04"


def test_a_report_may_name_a_segmentation_of_the_same_release_only() -> None:
    """The reference to the sibling passes when it is stated, and holds the report when not."""
    crosswalk = series("Latin-1")[2]
    sources = [read(data) for data in series("Latin-1")[1]]
    segment = segmentation_dataset(sources)
    report = reidentify_object(measurement_report(sources, Path(), segment), crosswalk)
    check_released(report, crosswalk, siblings=[segment.SOPInstanceUID])
    with pytest.raises(ReferenceMismatch, match="names an instance that is not of the series"):
        check_released(report, crosswalk)
    uids = [e.value for e in read(report).iterall() if e.keyword == "UID"]
    assert segment.SegmentSequence[0].TrackingUID in uids


# ---------------------------------------------------------------- text of its own


def labelled(patient: str, label: str) -> bytes:
    """A SEG in UTF-8 whose segment has this label."""
    ds = read(derived("SEG", patient))
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SegmentSequence[0].SegmentLabel = label
    ds.SegmentSequence[0].SegmentAlgorithmName = label
    ds.ContentCreatorName = f"{label}^Ada"
    return saved(ds)


@pytest.mark.parametrize(
    ("patient", "label", "character_set"),
    [
        ("ASCII", "Lungenflügel 肺", "ISO_IR 192"),
        ("Latin-1", "Lungenflügel", "ISO_IR 100"),
        ("Japanese", "右肺", ["", "ISO 2022 IR 87"]),
        ("Chinese", "Lungenflügel 肺", "GB18030"),
    ],
)
def test_own_text_is_readable_beside_the_patients(
    patient: str, label: str, character_set: object
) -> None:
    """In the original's character set, or in its own where the patient's text is ASCII."""
    before, _, crosswalk = series(patient)
    output = reidentify_object(labelled(patient, label), crosswalk)
    check_released(output, crosswalk)
    back = read(output)
    assert back.SpecificCharacterSet == character_set
    assert back.SegmentSequence[0].SegmentLabel == label
    assert back.ContentCreatorName.family_name == label
    assert raw(back) == raw(read(before[0]))


def test_own_text_that_the_patients_character_set_lacks_is_refused() -> None:
    """A Japanese label beside a patient in Latin-1: nobody could read both."""
    with pytest.raises(Unsupported, match="SegmentLabel"):
        reidentify_object(labelled("Latin-1", "右肺"), series("Latin-1")[2])


# ---------------------------------------------------------------- another study, another patient


def other_study() -> tuple[list[Dataset], Crosswalk]:
    """Instances of another study of another patient, de-identified by the same node."""
    results = [
        deidentify_instance(
            part10(ct_instance(
                number, PatientID="MRN-OTHER-9", name="Else^Somebody",
                StudyInstanceUID=f"{ROOT}.51", SeriesInstanceUID=f"{ROOT}.52",
                SOPInstanceUID=f"{ROOT}.52.{number}", FrameOfReferenceUID=f"{ROOT}.53",
            )), basic_policy(), KEYS,
        )
        for number in (1, 2)
    ]  # fmt: skip
    return [read(r.data) for r in results], Crosswalk.collect(r.original for r in results)


def test_an_object_of_another_study_or_patient_is_never_given_this_one() -> None:
    """Its StudyInstanceUID or PatientID is a pseudonym, and not this series'."""
    crosswalk = series("Latin-1")[2]
    foreign = segmentation(other_study()[0], Path())
    with pytest.raises(ReferenceMismatch, match="another patient"):
        reidentify_object(foreign, crosswalk)
    disguised = read(foreign)
    disguised.PatientID = "12345"
    with pytest.raises(ReferenceMismatch, match="another study"):
        reidentify_object(saved(disguised), crosswalk)
    disguised.StudyInstanceUID = f"{ROOT}.99"
    with pytest.raises(ReferenceMismatch):
        check_released(reidentify_object(saved(disguised), crosswalk), crosswalk)


def test_an_object_that_a_program_put_into_a_study_of_its_own_returns_to_ours() -> None:
    """Its references say where it belongs."""
    ds = read(derived("SEG"))
    ds.StudyInstanceUID, ds.PatientID = f"{ROOT}.99", "none"
    crosswalk = series("Latin-1")[2]
    output = reidentify_object(saved(ds), crosswalk)
    check_released(output, crosswalk)
    assert (read(output).StudyInstanceUID, read(output).PatientID) == (STUDY, PATIENT_ID)


STRANGE = pseudonymous_uid("1.2.3.4", KEYS.uid)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [("IrradiationEventUID", STRANGE), ("SeriesDescription", f"after {STRANGE}")],
)
def test_a_pseudonym_of_unknown_origin_is_held(keyword: str, value: str) -> None:
    """A UID of the form that we give, in no crosswalk, named where something is referred to."""
    crosswalk = series("Latin-1")[2]
    ds = read(reidentify_object(derived("SEG"), crosswalk))
    item = Dataset()
    setattr(item, keyword, value)
    ds.ReferencedInstanceSequence = [item]
    with pytest.raises(PseudonymRemains, match=keyword):
        check_released(saved(ds), crosswalk)


def test_a_pseudonym_in_a_document_or_in_other_bytes_is_held() -> None:
    """Text of a PDF, private bulk data, a comment inside pixel data: nobody parses them."""
    crosswalk = series("Latin-1")[2]
    sources = [read(data) for data in series("Latin-1")[1]]
    for text in (crosswalk.pseudonym, crosswalk.pseudonym.lower(), crosswalk.uids[STUDY]):
        document = encapsulated_pdf(sources, Path(), text=f"report of {text}")
        with pytest.raises(PseudonymRemains, match="EncapsulatedDocument"):
            check_released(reidentify_object(document, crosswalk), crosswalk)
    capture = read(reidentify_object(derived("SC"), crosswalk))
    pixels = bytearray(capture.PixelData)
    pixels[7 : 7 + len(crosswalk.pseudonym)] = crosswalk.pseudonym.encode()
    capture.PixelData = bytes(pixels)
    with pytest.raises(PseudonymRemains, match="bytes of the object"):
        check_released(saved(capture), crosswalk)


def test_the_patients_text_under_another_character_set_is_held() -> None:
    """The bytes of a name mean something else under another set."""
    crosswalk = series("Japanese")[2]
    ds = read(reidentify_object(derived("SEG", "Japanese"), crosswalk))
    patient = ds.get_item("PatientName")
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds[0x00100010] = patient
    with pytest.raises(ReferenceMismatch):
        check_released(saved(ds), crosswalk)


def leaves(ds: Dataset) -> Iterator[tuple[Dataset, DataElement]]:
    """Every element without items, with the data set or item it stands in."""
    for element in ds:
        if element.VR == "SQ":
            for item in element.value:
                yield from leaves(item)
        else:
            yield ds, element


LONG_TEXTS = {"LO", "LT", "PN", "ST", "UC", "UT"}  # long enough for the whole pseudonym


@pytest.mark.parametrize("kind", ["SEG", "SR", "RTSTRUCT", "GSPS", "SEG of dcmqi"])
def test_a_pseudonym_in_any_attribute_at_any_depth_is_held(kind: str) -> None:
    """One by one: each text is the pseudonym, each UID the pseudonym of some other one."""
    crosswalk = series("Latin-1")[2]
    siblings = siblings_of(derived(kind))
    clean = reidentify_object(derived(kind), crosswalk)
    check_released(clean, crosswalk, siblings=siblings)
    tried = 0
    for number in range(sum(1 for _ in leaves(read(clean)))):
        ds = read(clean)
        parent, element = next(itertools.islice(leaves(ds), number, None))
        if element.VR == "UI" and element.keyword not in ("SOPClassUID", "ReferencedSOPClassUID"):
            value = crosswalk.uids[f"{SERIES}.3"]
        elif element.VR in LONG_TEXTS:
            value = crosswalk.pseudonym
        else:
            continue
        parent[element.tag] = DataElement(element.tag, element.VR, value)
        with pytest.raises((PseudonymRemains, ReferenceMismatch)):
            check_released(saved(ds), crosswalk, siblings=siblings)
        tried += 1
    assert tried >= 15


# ---------------------------------------------------------------- several series


def test_an_object_of_two_series_needs_both_crosswalks() -> None:
    """Contours on images of two series of one study resolve through both, and only both."""
    numbers = {"1": (1, 2), "2": (3, 4)}
    crosswalks, sources = [], []
    for suffix, members in numbers.items():
        results = [
            deidentify_instance(
                part10(ct_instance(number, SeriesInstanceUID=f"{SERIES}.{suffix}00")),
                basic_policy(), KEYS,
            )
            for number in members
        ]  # fmt: skip
        sources += [read(result.data) for result in results]
        crosswalks.append(Crosswalk.collect(result.original for result in results))
    both = crosswalks[0].joined_with(crosswalks[1:])
    pseudonymous = structure_set(sources, Path())
    output = reidentify_object(pseudonymous, both)
    check_released(output, both)
    assert referenced(read(output)) == {STUDY, *(f"{SERIES}.{number}" for number in (1, 2, 3, 4))}
    with pytest.raises((ReferenceMismatch, PseudonymRemains)):
        check_released(reidentify_object(pseudonymous, crosswalks[0]), crosswalks[0])
    with pytest.raises(Unsupported, match="not all of one patient and study"):
        crosswalks[0].joined_with([other_study()[1]])
