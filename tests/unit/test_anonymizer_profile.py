"""The policy: Table E.1-1 resolved per SOP Class, defaults, digest."""

from __future__ import annotations

import dataclasses

import pytest
from pydicom._dicom_dict import DicomDictionary
from pydicom.datadict import keyword_for_tag, tag_for_keyword
from pydicom.uid import CTImageStorage, PositronEmissionTomographyImageStorage

from anonymizer import profile
from anonymizer.errors import Unsupported
from anonymizer.profile import (
    BULK_VRS,
    CODED_ENTRY,
    KEPT_BULK,
    KEPT_TEXT,
    TEXT_VRS,
    Action,
    basic_policy,
    patient_study_attributes,
    profile_with,
    supported_sop_classes,
)


def action(tag: int) -> Action:
    """What the policy does with an attribute of CT Image Storage at top level."""
    return basic_policy().for_sop_class(CTImageStorage).action(0, tag)


@pytest.mark.parametrize(
    ("keyword", "expected"),
    [
        ("AccessionNumber", Action.EMPTY),
        ("InstitutionName", Action.REMOVE),  # X/Z/D, Type 3 in CT
        ("StationName", Action.REMOVE),
        ("ContrastBolusAgent", Action.EMPTY),  # Z/D, Type 2 in CT
        ("ReferencedStudySequence", Action.REMOVE),  # X/Z: empty would be invalid for Type 3
        ("ReferencedImageSequence", Action.WALK),  # X/Z/U*
        ("StudyDate", Action.SHIFT),
        ("AcquisitionDateTime", Action.SHIFT),
        ("StudyTime", Action.KEEP),
        ("PatientBirthDate", Action.EMPTY),
        ("PatientAge", Action.REMOVE),
        ("TimezoneOffsetFromUTC", Action.REMOVE),
        ("FrameOfReferenceUID", Action.UID),
        ("SOPClassUID", Action.KEEP),
        ("PixelSpacing", Action.KEEP),
        ("ConvolutionKernel", Action.KEEP),
        ("LUTExplanation", Action.REMOVE),  # text that the table does not list
        ("CodeMeaning", Action.REMOVE),  # outside a coded entry
    ],
)
def test_codes_are_resolved_for_ct(keyword: str, expected: Action) -> None:
    """Compound codes follow the attribute's Type in CT Image Storage (PS3.15 Table E.1-1a)."""
    tag = tag_for_keyword(keyword)
    assert tag is not None
    assert action(tag) is expected


def test_rows_that_the_dictionary_does_not_know_yet_are_removed() -> None:
    """Person Names to Use, added in 2026c, is not in pydicom's dictionary; it goes all the same."""
    assert action(0x00100011) is Action.REMOVE


def test_the_same_code_differs_between_sop_classes() -> None:
    """SeriesDate is Type 3 in CT and Type 1 in PET; the dates option shifts it in both."""
    pet = basic_policy().for_sop_class(PositronEmissionTomographyImageStorage)
    assert pet.attribute_type(0, 0x00080021) == 1
    assert basic_policy().for_sop_class(CTImageStorage).attribute_type(0, 0x00080021) == 3


@pytest.mark.parametrize("sop_class_uid", sorted(supported_sop_classes()))
def test_unlisted_text_is_denied_everywhere(sop_class_uid: str) -> None:
    """No text and no bulk value is kept unless it stands on one of the two short lists."""
    policy = basic_policy().for_sop_class(sop_class_uid)
    for tag, (vr, *_rest) in DicomDictionary.items():
        kept = policy.action(0, tag) is Action.KEEP
        if set(vr.split(" or ")) & (TEXT_VRS | BULK_VRS):
            assert not kept or tag in KEPT_TEXT | KEPT_BULK, keyword_for_tag(tag)
        elif vr == "UI" and kept:
            keyword = keyword_for_tag(tag)
            assert "Instance" not in keyword or "TransferSyntax" in keyword, keyword


def test_private_and_unknown_attributes_are_removed() -> None:
    """What no table knows does not leave."""
    policy = basic_policy().for_sop_class(CTImageStorage)
    for tag in (0x00090010, 0x00291010, 0x60003000, 0x50000022, 0x00180001, 0xFFFCFFFC, 0x7FE00010):
        assert policy.action(0, tag) is Action.REMOVE


def test_unknown_sop_class_has_no_policy() -> None:
    """Without the IOD's Types no valid output can be promised."""
    with pytest.raises(Unsupported):
        basic_policy().for_sop_class("1.2.3")


def test_digest_names_the_policy_and_its_edition_is_stated() -> None:
    """64 hexadecimal digits, stable within a process; both editions of the table named."""
    assert len(basic_policy().digest) == 64
    assert basic_policy().digest == basic_policy().digest
    assert "2024b" in basic_policy().edition
    assert "2026c" in basic_policy().edition


def test_compiled_table_cannot_be_changed() -> None:
    """What a digest names stays what it was."""
    policy = basic_policy()
    for table in (policy.codes, policy.for_sop_class(CTImageStorage).actions):
        with pytest.raises(TypeError):
            table[0x00100010] = "K"  # type: ignore[index]


def test_no_time_stays_without_a_dates_option() -> None:
    """Times that the table does not list go as its own do; with shifted dates they stay."""
    times = [t for t, entry in DicomDictionary.items() if entry[0] == "TM" and t >> 16 >= 8]
    assert len(times) >= 50
    none = profile_with(frozenset()).for_sop_class(CTImageStorage)
    kept = [keyword_for_tag(t) for t in times if none.action(0, t) is Action.KEEP]
    assert kept == []
    assert sum(action(t) is Action.KEEP for t in times) >= 45  # not the time of birth


def test_patient_and_study_modules_have_what_ps3_3_lists() -> None:
    """Type 2 attributes of the two mandatory modules; optional modules demand nothing."""
    shared = {keyword_for_tag(tag): kind for tag, kind in patient_study_attributes().items()}
    type_2 = {keyword for keyword, kind in shared.items() if kind == "2"}
    assert type_2 == {
        "PatientName", "PatientID", "PatientBirthDate", "PatientSex",
        "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyID",
    }  # fmt: skip
    assert {"IssuerOfPatientID", "StudyDescription", "PatientAge", "PatientWeight"} <= set(shared)
    assert not {"SeriesInstanceUID", "Modality", "FrameOfReferenceUID"} & set(shared)


def test_coded_entries_are_kept_only_inside_sequences() -> None:
    """Parts of a code have a rule of their own there, and no business elsewhere."""
    policy = basic_policy().for_sop_class(CTImageStorage)
    for tag in CODED_ENTRY:
        assert policy.action(0, tag) is Action.REMOVE
        assert policy.action(0x00082218, tag) is Action.KEEP


@pytest.mark.parametrize("name", ["CLOSED_LISTS", "KNOWN_SCHEMES", "ENGINE_VERSION"])
def test_digest_changes_with_the_terms_that_may_stay(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A term more or less in a closed list makes other outputs, so it is another policy."""
    less = {"CLOSED_LISTS": {}, "KNOWN_SCHEMES": frozenset(), "ENGINE_VERSION": 0}
    before = basic_policy().digest
    monkeypatch.setattr(profile, name, less[name])
    # The digest of a policy is remembered, so a new one is asked.
    assert dataclasses.replace(basic_policy()).digest != before
