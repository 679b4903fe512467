"""A site's recipe: what it changes, and the lines that stop the start."""

from __future__ import annotations

import io
from importlib import resources
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset

from anonymizer import Policy, PseudonymKeys, apply_recipe, basic_policy, deidentify_instance
from anonymizer.errors import RecipeError
from anonymizer.options import Option
from anonymizer.profile import profile_with
from tests.identified_ct import ct_bytes

KEYS = PseudonymKeys.from_secret(bytes(32))


def policy_of(tmp_path: Path, *lines: str) -> Policy:
    """The basic profile with a recipe of these lines."""
    recipe = tmp_path / "site.deid"
    recipe.write_text("\n".join(["FORMAT dicom", "%header", *lines]) + "\n")
    return apply_recipe(basic_policy(), recipe)


def deidentified(policy: Policy, **attributes: object) -> Dataset:
    """A CT with these attributes, de-identified."""
    data = deidentify_instance(ct_bytes(**attributes), policy, KEYS).data
    return pydicom.dcmread(io.BytesIO(data))


def test_verbs_do_what_they_say(tmp_path: Path) -> None:
    """KEEP, BLANK, REMOVE, REPLACE, ADD; comments and tags in both notations."""
    policy = policy_of(
        tmp_path,
        "# our rules",
        "KEEP (0008,103E)",
        "BLANK Manufacturer # says which hospital",
        "REMOVE 00181210",
        "REPLACE InstitutionName EXAMPLE HOSPITAL",
        "ADD ClinicalTrialProtocolID TRIAL-7",
    )
    ds = deidentified(policy, SeriesDescription="Chest thin", InstitutionName="Overbrook")
    assert ds.SeriesDescription == "Chest thin"
    assert ds.Manufacturer == ""
    assert "ConvolutionKernel" not in ds
    assert ds.InstitutionName == "EXAMPLE HOSPITAL"
    assert ds.ClinicalTrialProtocolID == "TRIAL-7"
    assert "StudyDescription" not in ds


def test_kept_text_is_cleaned_of_the_patient(tmp_path: Path) -> None:
    """KEEP does not mean keep the name."""
    policy = policy_of(tmp_path, "KEEP StudyDescription")
    assert deidentified(policy, StudyDescription="Thorax").StudyDescription == "Thorax"
    assert "StudyDescription" not in deidentified(policy, StudyDescription="Mrs Featherstone")


def test_age_is_capped(tmp_path: Path) -> None:
    """A kept age above 89 is 090Y."""
    policy = policy_of(tmp_path, "REPLACE PatientAge func:cap_age")
    assert deidentified(policy, PatientAge="097Y").PatientAge == "090Y"
    assert deidentified(policy, PatientAge="076Y").PatientAge == "076Y"


def test_selectors_and_precedence(tmp_path: Path) -> None:
    """A broad REMOVE gives way to KEEP, and never touches what makes an instance one."""
    policy = policy_of(tmp_path, "REMOVE select:group:0018", "KEEP KVP", "REMOVE contains:UID")
    ds = deidentified(policy)
    assert ds.KVP == 120
    assert "SliceThickness" not in ds
    assert ds.SOPInstanceUID and ds.StudyInstanceUID and ds.FrameOfReferenceUID


def test_claims_follow_what_is_kept(tmp_path: Path) -> None:
    """An option's code is stated exactly when the recipe keeps what the option retains."""
    policy = policy_of(tmp_path, "KEEP PatientSex", "KEEP DeviceSerialNumber")
    codes = [item.CodeValue for item in deidentified(policy).DeidentificationMethodCodeSequence]
    assert codes == ["113100", "113107", "113108", "113109"]


def test_recipe_changes_the_digest(tmp_path: Path) -> None:
    """Two policies are never mistaken for each other; the same lines give the same digest."""
    one, again = (policy_of(tmp_path, "KEEP PatientSex") for _ in range(2))
    assert one.digest == again.digest != basic_policy().digest
    other = policy_of(tmp_path, "REPLACE InstitutionName A")
    assert other.digest != policy_of(tmp_path, "REPLACE InstitutionName B").digest


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("DELETE PatientName", "unknown verb"),
        ("remove StationName", "unknown verb"),
        ("REMOVED StationName", "unknown verb"),
        ("REMOVE StationNam", "nothing matches"),
        ("KEEP 00990099", "no public attribute"),
        ("KEEP", "lacks its field"),
        ("REPLACE StationName", "lacks its field or value"),
        ("REPLACE PatientAge func:unknown", "unknown function"),
        ("REPLACE StationName var:unknown", "unknown function"),
        ("REPLACE StationName func:keyed_uid", "does not make a value"),
        ("REPLACE StationName ABCDEFGHIJKLMNOPQ", "longer than"),
        ("REPLACE InstitutionName Müller", "not a constant"),
        ("REPLACE PatientSex f", "upper case"),
        ("REMOVE StationName func:when", "condition"),
        ("JITTER StudyDate 31", "patient_shift"),
        ("JITTER StationName var:patient_shift", "not a date"),
        ("JITTER PatientBirthDate var:patient_shift", "not a date"),
        ("KEEP SOPInstanceUID", "set by the engine"),
        ("KEEP PatientName", "set by the engine"),
        ("KEEP ReferringPhysicianName", "would identify"),
        ("KEEP AccessionNumber", "would identify"),
        ("KEEP StudyDate", "would identify"),
        ("KEEP IrradiationEventUID", "would identify"),
        ("ADD contains:Name X", "one attribute"),
        ("REMOVE contains:(", "regular expression"),
        ("%filter greylist", "only the sections"),
        ("%values x", "only the sections"),
        ("%fields", "only the sections"),
        ("REMOVE fields:nowhere", "no list %fields nowhere"),
        ("REPLACE contains:StationName X", "not a constant"),
    ],
)
def test_a_line_that_cannot_be_meant_stops_the_start(tmp_path: Path, line: str, cause: str) -> None:
    """Unknown or dangerous lines are errors that name the line, not warnings."""
    with pytest.raises(RecipeError, match=cause) as caught:
        policy_of(tmp_path, "KEEP PatientSex", line)
    assert "Line 4" in str(caught.value)


def test_list_of_fields_stands_for_its_lines(tmp_path: Path) -> None:
    """%fields NAME with FIELD lines, used as fields:NAME."""
    policy = policy_of(
        tmp_path,
        "%fields scanner",
        "FIELD Manufacturer",
        "FIELD startswith:Convolution # the filter",
        "%header",
        "REMOVE fields:scanner",
    )
    ds = deidentified(policy)
    assert "Manufacturer" not in ds and "ConvolutionKernel" not in ds
    assert ds.KVP == 120


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("FIELD ManufacturerModelNam", "nothing matches"),
        ("REMOVE Manufacturer", "has lines FIELD"),
        ("FIELD", "has lines FIELD"),
        ("SPLIT PatientID", "has lines FIELD"),
    ],
)
def test_wrong_line_in_a_list_of_fields_is_named(tmp_path: Path, line: str, cause: str) -> None:
    """A list is checked where it stands, used or not."""
    with pytest.raises(RecipeError, match=f"Line 4: .*{cause}"):
        policy_of(tmp_path, "%fields scanner", line)


def test_recipe_over_options_claims_both(tmp_path: Path) -> None:
    """The recipe's claims join the options', each code once, in order."""
    recipe = tmp_path / "site.deid"
    recipe.write_text("FORMAT dicom\n%header\nKEEP PatientSex\nREMOVE DeviceSerialNumber\n")
    base = profile_with(frozenset({Option.RETAIN_DEVICE_IDENTITY, Option.RETAIN_MODIFIED_DATES}))
    policy = apply_recipe(base, recipe)
    codes = [item.CodeValue for item in deidentified(policy).DeidentificationMethodCodeSequence]
    assert codes == ["113100", "113107", "113108", "113109"]
    ds = deidentified(policy, DeviceSerialNumber="SN-1", StationName="S1")
    assert "DeviceSerialNumber" not in ds and ds.StationName == "S1"


def test_shifting_over_full_dates_is_refused(tmp_path: Path) -> None:
    """A shift by nothing would be the original date."""
    recipe = tmp_path / "site.deid"
    recipe.write_text("FORMAT dicom\n%header\nJITTER StudyDate var:patient_shift\n")
    with pytest.raises(RecipeError, match="Line 3: nothing is shifted"):
        apply_recipe(profile_with(frozenset({Option.RETAIN_FULL_DATES})), recipe)


def test_shifting_one_date_of_a_profile_without_dates(tmp_path: Path) -> None:
    """It moves, and the output says so: never the original, never unclaimed."""
    recipe = tmp_path / "site.deid"
    recipe.write_text("FORMAT dicom\n%header\nJITTER StudyDate var:patient_shift\n")
    ds = deidentified(apply_recipe(profile_with(frozenset()), recipe))
    assert "1990" < ds.StudyDate < "20240517"
    assert "SeriesDate" not in ds
    assert ds.LongitudinalTemporalInformationModified == "MODIFIED"
    assert [item.CodeValue for item in ds.DeidentificationMethodCodeSequence] == [
        "113100", "113107",
    ]  # fmt: skip


def test_text_cleaned_to_its_vocabulary(tmp_path: Path) -> None:
    """func:clean_text keeps what is published vocabulary, and claims 113105."""
    policy = policy_of(tmp_path, "REPLACE StudyDescription func:clean_text")
    ds = deidentified(policy, StudyDescription="Thorax ref. Dr. Zhivago 2019")
    assert ds.StudyDescription == "Thorax"
    assert "113105" in [item.CodeValue for item in ds.DeidentificationMethodCodeSequence]


def test_action_outside_a_section_is_refused(tmp_path: Path) -> None:
    """A recipe without %header would be read as nothing."""
    recipe = tmp_path / "r.deid"
    recipe.write_text("FORMAT dicom\nREMOVE StationName\n")
    with pytest.raises(RecipeError, match="before %header"):
        apply_recipe(basic_policy(), recipe)


def test_missing_recipe_is_refused(tmp_path: Path) -> None:
    """No file, no start."""
    with pytest.raises(RecipeError, match="cannot be read"):
        apply_recipe(basic_policy(), tmp_path / "none.deid")


def test_shipped_recipe_is_valid(capfd: pytest.CaptureFixture[str]) -> None:
    """The example in the package loads, and deid prints nothing."""
    with resources.as_file(resources.files("anonymizer.profiles") / "research.deid") as path:
        policy = apply_recipe(basic_policy(), path)
    assert deidentified(policy, PatientSex="F").PatientSex == "F"
    assert capfd.readouterr() == ("", "")
