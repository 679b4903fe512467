"""The way back: a real SEG made from de-identified instances gets its patient back, or is held."""

from __future__ import annotations

import functools
import io
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from anonymizer import (
    Crosswalk,
    Policy,
    PseudonymKeys,
    basic_policy,
    check_released,
    deidentify_instance,
    reidentify_object,
)
from anonymizer.errors import PseudonymRemains, ReferenceMismatch, Unsupported, VaultError
from anonymizer.profile import patient_study_attributes
from node.results.uids import result_uid
from tests.identified_ct import (
    FRAME,
    JAPANESE,
    PATIENT_ID,
    ROOT,
    SERIES,
    STUDY,
    STUDY_DATE,
    ct_instance,
    part10,
)

KEYS = PseudonymKeys.from_secret(bytes(range(32)))
SHARED = Path(__file__).parents[3] / "shared" / "data"
RESULT_SOP, RESULT_SERIES = f"{ROOT}.900.1", f"{ROOT}.900"

NAMES = [
    ("Featherstone^Quillon", None),
    ("Müller^Jürgen", "ISO_IR 100"),
    (JAPANESE, ["", "ISO 2022 IR 87"]),
    ("Müller^Jürgen=山田", "ISO_IR 192"),
]


def derived(instances: list[bytes], policy: Policy | None = None) -> tuple[bytes, Crosswalk]:
    """A pseudonymous SEG made by highdicom from ``instances``, and their crosswalk."""
    results = [deidentify_instance(data, policy or basic_policy(), KEYS) for data in instances]
    crosswalk = Crosswalk.collect(result.original for result in results)
    sources = [pydicom.dcmread(io.BytesIO(result.data)) for result in results]
    mask = np.zeros((len(sources), sources[0].Rows, sources[0].Columns), np.uint8)
    mask[:, 2:5, 2:6] = 1
    algorithm = highdicom.AlgorithmIdentificationSequence(
        "test model", codes.DCM.ArtificialIntelligence, "1"
    )
    segment = highdicom.seg.SegmentDescription(
        1, "Lung", codes.SCT.Organ, codes.SCT.Lung, "AUTOMATIC", algorithm
    )
    seg = highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=mask,
        segmentation_type="BINARY",
        segment_descriptions=[segment],
        series_instance_uid=RESULT_SERIES,
        series_number=900,
        sop_instance_uid=RESULT_SOP,
        instance_number=1,
        manufacturer="segnode",
        manufacturer_model_name="ct_lungs",
        software_versions="1",
        device_serial_number="1",
    )
    buffer = io.BytesIO()
    seg.save_as(buffer)
    return buffer.getvalue(), crosswalk


@functools.cache
def usual() -> tuple[bytes, Crosswalk]:
    """Three CT instances, their SEG and crosswalk; made once."""
    return derived([part10(ct_instance(number)) for number in (1, 2, 3)])


def read(data: bytes) -> Dataset:
    """As pydicom reads it."""
    return pydicom.dcmread(io.BytesIO(data))


def changed(data: bytes, change: Callable[[Dataset], None]) -> bytes:
    """``data`` after ``change``."""
    ds = read(data)
    change(ds)
    buffer = io.BytesIO()
    ds.save_as(buffer)
    return buffer.getvalue()


def raw_values(ds: Dataset) -> dict[int, bytes]:
    """Value bytes of the Patient and Study modules as they stand in the file."""
    return {
        int(tag): entry.value or b""
        for tag, entry in ds.items()
        if tag in patient_study_attributes()
        and entry.VR != "SQ"
        and isinstance(entry.value, bytes | None)
    }


@pytest.mark.parametrize(("name", "charset"), NAMES)
def test_patient_and_study_return_byte_for_byte(name: str, charset: Any) -> None:
    """Patient and Study modules and the character set are the original's bytes."""
    extra = {"StudyDescription": "Thorax", "PatientAge": "076Y", "PatientWeight": "61.5"}
    originals = [part10(ct_instance(n, name=name, charset=charset, **extra)) for n in (1, 2)]
    seg, crosswalk = derived(originals)
    output = reidentify_object(seg, crosswalk)
    check_released(output, crosswalk)
    before, after = read(originals[0]), read(output)
    assert raw_values(after) == raw_values(before)
    assert after.get("SpecificCharacterSet") == before.get("SpecificCharacterSet")
    assert after.PatientName == before.PatientName


def test_references_frame_and_study_are_the_originals() -> None:
    """Every reference at every depth, the frame of reference and the study."""
    seg, crosswalk = usual()
    ds = read(reidentify_object(seg, crosswalk))
    assert ds.StudyInstanceUID == STUDY
    assert ds.FrameOfReferenceUID == FRAME
    assert (ds.SOPInstanceUID, ds.SeriesInstanceUID) == (RESULT_SOP, RESULT_SERIES)
    assert ds.ReferencedSeriesSequence[0].SeriesInstanceUID == SERIES
    referenced = {
        element.value for element in ds.iterall() if element.keyword == "ReferencedSOPInstanceUID"
    }
    assert referenced == {f"{SERIES}.{number}" for number in (1, 2, 3)}
    assert ds.pixel_array.sum() == read(seg).pixel_array.sum() > 0


def test_nothing_of_the_detour_is_left() -> None:
    """No pseudonym, no pseudonymous UID, no statement of de-identification."""
    seg, crosswalk = usual()
    output = reidentify_object(seg, crosswalk)
    assert crosswalk.pseudonym.encode() in seg
    assert crosswalk.pseudonym.encode() not in output
    assert not any(uid.encode() in output for uid in crosswalk.uids.values())
    ds = read(output)
    for keyword in ("PatientIdentityRemoved", "DeidentificationMethod",
                    "DeidentificationMethodCodeSequence",
                    "LongitudinalTemporalInformationModified"):  # fmt: skip
        assert keyword not in ds
    assert ds.StudyDate == STUDY_DATE


def test_absent_stays_absent_and_type_2_becomes_empty() -> None:
    """What the original lacks is not invented; what the IOD demands is empty."""
    ds = ct_instance()
    del ds.ReferringPhysicianName, ds.StudyID, ds.PatientBirthDate
    seg, crosswalk = derived([part10(ds)])
    after = read(reidentify_object(seg, crosswalk))
    assert (after.ReferringPhysicianName, after.StudyID, after.PatientBirthDate) == ("", "", "")
    assert "StudyDescription" not in after
    assert "PatientAge" not in after


def test_identity_that_the_original_had_removed_is_stated_again() -> None:
    """A study that came de-identified goes back saying so, in its own words."""
    method = "by the archive"
    ds = ct_instance(PatientIdentityRemoved="YES", DeidentificationMethod=method)
    seg, crosswalk = derived([part10(ds)])
    output = reidentify_object(seg, crosswalk)
    check_released(output, crosswalk)
    assert read(output).DeidentificationMethod == method


def test_dates_copied_from_the_series_return_and_own_dates_stay() -> None:
    """A shifted date is undone wherever it stands; the day of the result is not touched."""
    seg, crosswalk = usual()

    def add_dates(ds: Dataset) -> None:
        ds.AcquisitionDate = crosswalk.dates[STUDY_DATE]
        ds.AcquisitionDateTime = crosswalk.dates[STUDY_DATE] + "101112"
        ds.ContentDate = "20261121"

    after = read(reidentify_object(changed(seg, add_dates), crosswalk))
    assert after.AcquisitionDate == STUDY_DATE
    assert after.AcquisitionDateTime == STUDY_DATE + "101112"
    assert after.ContentDate == "20261121"


def test_reidentifying_twice_changes_nothing() -> None:
    """A retry after a crash gives the same bytes."""
    seg, crosswalk = usual()
    once = reidentify_object(seg, crosswalk)
    assert reidentify_object(once, crosswalk) == once


@settings(max_examples=25, deadline=None)
@given(
    patient_id=st.text(
        st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="\\"),
        min_size=1,
        max_size=64,
    ),
    accession=st.from_regex(r"[A-Z0-9]{0,16}", fullmatch=True),
    study_date=st.dates().map(lambda date: date.isoformat().replace("-", "")),
)
def test_what_was_taken_comes_back(patient_id: str, accession: str, study_date: str) -> None:
    """For any identity that passes: reidentify(derive(deidentify(x))) has x's patient and study."""
    ds = ct_instance(PatientID=patient_id, AccessionNumber=accession, StudyDate=study_date)
    seg, crosswalk = derived([part10(ds)])
    output = reidentify_object(seg, crosswalk)
    check_released(output, crosswalk)
    after = read(output)
    assert (after.PatientID, after.AccessionNumber, after.StudyDate) == (
        patient_id.strip(), accession, study_date,
    )  # fmt: skip


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="needs dicom3tools")
@pytest.mark.parametrize(("name", "charset"), NAMES[:3])
def test_returned_seg_is_as_valid_as_the_pseudonymous_one(
    tmp_path: Path, name: str, charset: Any
) -> None:
    """dciodvfy prints no error for either."""
    instances = [part10(ct_instance(n, name=name, charset=charset)) for n in (1, 2)]
    seg, crosswalk = derived(instances)
    for label, data in (("before", seg), ("after", reidentify_object(seg, crosswalk))):
        path = tmp_path / f"{label}.dcm"
        path.write_bytes(data)
        report = subprocess.run(["dciodvfy", str(path)], capture_output=True, check=False).stderr
        assert b"Error" not in report, (label, report)


# ---------------------------------------------------------------- the gate


def _returned() -> bytes:
    return reidentify_object(*usual())


def _set(path: str, value: str) -> Callable[[Dataset], None]:
    """A change of one attribute: ``ReferencedSeriesSequence.0.SeriesInstanceUID``."""

    def change(ds: Dataset) -> None:
        *steps, last = path.split(".")
        for step in steps:
            ds = ds[int(step)] if step.isdigit() else ds[step].value
        setattr(ds, last, value)

    return change


FIRST = "ReferencedSeriesSequence.0.ReferencedInstanceSequence.0."


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (_set("PatientID", "MRN-OTHER"), "PatientID"),
        (_set("PatientName", "Somebody^Else"), "PatientName"),
        (_set("StudyInstanceUID", f"{ROOT}.5"), "StudyInstanceUID"),
        (_set("AccessionNumber", ""), "AccessionNumber"),
        (_set("PatientComments", "added"), "PatientComments"),
        (_set("FrameOfReferenceUID", f"{ROOT}.6"), "FrameOfReferenceUID"),
        (_set("SeriesInstanceUID", SERIES), "SeriesInstanceUID"),
        (_set("SOPInstanceUID", f"{SERIES}.1"), "SOPInstanceUID"),
        (_set(FIRST + "ReferencedSOPInstanceUID", f"{SERIES}.77"), "not of the series"),
        (_set(FIRST + "ReferencedSOPClassUID", "1.2.840.10008.5.1.4.1.1.4"), "SOP Class"),
        (_set("ReferencedSeriesSequence.0.SeriesInstanceUID", f"{ROOT}.8"), "another series"),
    ],
)
def test_gate_holds_an_object_of_another_patient_study_or_series(
    change: Callable[[Dataset], None], cause: str
) -> None:
    """Each deviation is held, with the attribute named and no value shown."""
    crosswalk = usual()[1]
    with pytest.raises(ReferenceMismatch, match=cause) as caught:
        check_released(changed(_returned(), change), crosswalk)
    assert PATIENT_ID not in str(caught.value)
    assert ROOT not in str(caught.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda walk: _set("ContentDescription", f"of {walk.pseudonym}"),
        lambda walk: _set("SeriesDescription", walk.uids[SERIES]),
        lambda walk: _set("SeriesDescription", f"scan of {walk.dates[STUDY_DATE]}"),
        lambda walk: _set("SeriesDate", walk.dates[STUDY_DATE]),
        lambda walk: _set("DimensionOrganizationSequence.0.DimensionOrganizationUID",
                          walk.uids[f"{SERIES}.1"]),
        lambda walk: _set("LongitudinalTemporalInformationModified", "MODIFIED"),
    ],
)  # fmt: skip
def test_gate_holds_what_is_still_pseudonymous(
    make: Callable[[Crosswalk], Callable[[Dataset], None]],
) -> None:
    """Pseudonym in text, pseudonymous UID anywhere, shifted date, a left-over statement."""
    crosswalk = usual()[1]
    with pytest.raises(PseudonymRemains):
        check_released(changed(_returned(), make(crosswalk)), crosswalk)


def test_gate_holds_an_object_that_was_not_reidentified() -> None:
    """The pseudonymous SEG itself does not pass."""
    seg, crosswalk = usual()
    with pytest.raises((ReferenceMismatch, PseudonymRemains)):
        check_released(seg, crosswalk)


def test_gate_holds_an_object_without_references() -> None:
    """A result that names nothing it was made from cannot be placed."""
    crosswalk = usual()[1]

    def strip(ds: Dataset) -> None:
        for keyword in (
            "ReferencedSeriesSequence",
            "SourceImageSequence",
            "SharedFunctionalGroupsSequence",
            "PerFrameFunctionalGroupsSequence",
        ):
            if keyword in ds:
                del ds[keyword]

    with pytest.raises(ReferenceMismatch, match="no instance"):
        check_released(changed(_returned(), strip), crosswalk)


def test_gate_lets_results_of_one_job_refer_to_each_other() -> None:
    """An SR names the SEG it measures: allowed for stated siblings only."""
    crosswalk = usual()[1]

    def refer(ds: Dataset) -> None:
        item = Dataset()
        item.ReferencedSOPClassUID = "1.2.840.10008.5.1.4.1.1.66.4"
        item.ReferencedSOPInstanceUID = f"{ROOT}.900.2"
        ds.ReferencedInstanceSequence = [item]

    data = changed(_returned(), refer)
    with pytest.raises(ReferenceMismatch):
        check_released(data, crosswalk)
    check_released(data, crosswalk, siblings=[f"{ROOT}.900.2"])


def test_gate_knows_the_series_of_results_of_one_job() -> None:
    """Evidence names the SEG's series, whose UID has the form of a pseudonym: only if stated."""
    crosswalk = usual()[1]
    series = result_uid("job", "seg:series")

    def refer(ds: Dataset) -> None:
        instance = Dataset()
        instance.ReferencedSOPClassUID = "1.2.840.10008.5.1.4.1.1.66.4"
        instance.ReferencedSOPInstanceUID = f"{ROOT}.900.2"
        item = Dataset()
        item.SeriesInstanceUID = series
        item.ReferencedSOPSequence = [instance]
        ds.CurrentRequestedProcedureEvidenceSequence = [item]

    data = changed(_returned(), refer)
    with pytest.raises(PseudonymRemains, match="SeriesInstanceUID"):
        check_released(data, crosswalk, siblings=[f"{ROOT}.900.2"])
    check_released(data, crosswalk, siblings=[f"{ROOT}.900.2"], sibling_series=[series])


def test_original_date_that_looks_like_a_shifted_one_is_not_held() -> None:
    """Two dates of a series may be one shift apart; the earlier one is right where it stands."""
    shift = deidentify_instance(part10(ct_instance()), basic_policy(), KEYS).original.shift_days
    earlier = np.datetime_as_string(np.datetime64("2024-05-17") + shift).replace("-", "")
    seg, crosswalk = derived([part10(ct_instance(ContentDate=earlier))])
    output = changed(reidentify_object(seg, crosswalk), _set("SeriesDate", earlier))
    check_released(output, crosswalk)


# ---------------------------------------------------------------- the crosswalk


def test_crosswalk_survives_as_bytes() -> None:
    """What is sealed is what is opened."""
    crosswalk = usual()[1]
    assert Crosswalk.from_bytes(crosswalk.to_bytes()) == crosswalk
    assert crosswalk.instances.keys() == {f"{SERIES}.{number}" for number in (1, 2, 3)}
    assert ROOT not in repr(crosswalk)


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"version":2}', b"\xff\xfe"])
def test_bytes_that_are_no_crosswalk_are_refused(data: bytes) -> None:
    """Damage is named."""
    with pytest.raises(VaultError):
        Crosswalk.from_bytes(data)


def test_crosswalk_of_two_series_is_refused() -> None:
    """One crosswalk, one series: a mixed one could give a result to the wrong patient."""
    instances = [ct_instance(), ct_instance(SeriesInstanceUID=f"{ROOT}.22")]
    originals = [deidentify_instance(part10(ds), basic_policy(), KEYS).original for ds in instances]
    with pytest.raises(Unsupported):
        Crosswalk.collect(originals)
    with pytest.raises(Unsupported):
        Crosswalk.collect([])


def test_padding_and_odd_values_of_the_original_return_as_they_were() -> None:
    """Trailing spaces inside an even length are part of the bytes."""
    data = part10(ct_instance())
    odd = data.replace(b"LO\x0a\x00MRN-774411", b"LO\x0a\x00  MRN 7   ")
    assert odd != data
    assert b"LO\x0a\x00  MRN 7   " in reidentify_object(*derived([odd]))


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_real_ct_of_the_demo_returns() -> None:
    """Two slices of a real chest CT, there and back."""
    paths = sorted((SHARED / "ct_chest_cmb_crc_01068_demo").glob("*.dcm"))[:2]
    seg, crosswalk = derived([path.read_bytes() for path in paths])
    output = reidentify_object(seg, crosswalk)
    check_released(output, crosswalk)
    assert raw_values(read(output)) == raw_values(pydicom.dcmread(paths[0]))
