"""DeidentificationMethodCodeSequence claims exactly what was done: by options, by recipes."""

from __future__ import annotations

import io
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset

from anonymizer import Policy, PseudonymKeys, apply_recipe, deidentify_instance
from anonymizer.options import Option, options_named
from anonymizer.profile import profile_with
from tests.identified_ct import ct_instance, part10

KEYS = PseudonymKeys.from_secret(bytes(32))
MODIFIED, FULL = "retain-longitudinal-modified-dates", "retain-longitudinal-full-dates"


def output(policy: Policy) -> Dataset:
    """What comes out of a CT with the attributes that the recipes below name."""
    ds = ct_instance(
        StudyDescription="Thorax of Zhivago", StationName="CT1", DeviceSerialNumber="SN-1",
        PatientAge="076Y", PatientSize="1.7", PatientState="calm", InstitutionName="Overbrook",
        LUTExplanation="linear", SeriesTime="101112", ProtocolName="Thorax",
    )  # fmt: skip
    return pydicom.dcmread(io.BytesIO(deidentify_instance(part10(ds), policy, KEYS).data))


def claimed(ds: Dataset) -> list[str]:
    """The codes in the order in which they stand."""
    return [item.CodeValue for item in ds.get("DeidentificationMethodCodeSequence", [])]


def recipe_policy(folder: Path, lines: str, *options: str) -> Policy:
    """The profile with these options and a recipe of these lines."""
    path = folder / "site.deid"
    path.write_text(f"FORMAT dicom\n%header\n{lines}\n")
    return apply_recipe(profile_with(options_named(options)), path)


@pytest.mark.parametrize("option", Option)
def test_each_option_claims_itself(option: Option) -> None:
    """113100 and its own code; cleaned pixels only by the images that were cleaned."""
    own = [] if option is Option.CLEAN_PIXEL_DATA else [option.method[0]]
    assert claimed(output(profile_with(frozenset({option})))) == ["113100", *own]


def test_all_options_claim_all() -> None:
    """In order of code, none twice, none invented (CID 7050)."""
    options = frozenset(Option) - {Option.RETAIN_FULL_DATES}
    codes = claimed(output(profile_with(options).with_clean_pixels))
    assert codes == sorted({"113100", *(option.method[0] for option in options)})


@pytest.mark.parametrize(
    ("lines", "options", "codes"),
    [
        # what an option retains, kept by a line
        ("KEEP PatientSex", [MODIFIED], ["113107", "113108"]),
        ("REPLACE PatientAge func:cap_age", [], ["113108"]),
        ("KEEP StationName", [MODIFIED], ["113107", "113109"]),
        ("KEEP InstitutionalDepartmentName", [], ["113112"]),
        ("KEEP SeriesTime", [], ["113106"]),
        ("KEEP SeriesTime", [MODIFIED], ["113107"]),
        ("JITTER SeriesDate var:patient_shift", [], ["113107"]),
        ("JITTER SeriesDate var:patient_shift\nKEEP SeriesTime", [], ["113107"]),
        ("KEEP AcquisitionContextSequence", [], ["113104"]),
        # what an option cleans, cleaned by a line
        ("REPLACE StudyDescription func:clean_text", [], ["113105"]),
        ("REPLACE PatientState func:clean_text", [], ["113105"]),
        ("REPLACE PatientState func:clean_text", ["retain-patient-characteristics"], ["113108"]),
        # stricter than the profile, or about what the profile says nothing of
        ("REMOVE SeriesTime", [MODIFIED], ["113107"]),
        ("BLANK StudyDescription", ["clean-descriptors"], ["113105"]),
        ("REPLACE InstitutionName EXAMPLE", [], []),
        ("REMOVE ALL", [], []),
        ("KEEP LUTExplanation", [], []),
        ("ADD ClinicalTrialProtocolID TRIAL-7", [], []),
    ],
)
def test_recipe_claims_the_options_it_amounts_to(
    tmp_path: Path, lines: str, options: list[str], codes: list[str]
) -> None:
    """No code too many, none too few, and the statement about dates goes with them."""
    ds = output(recipe_policy(tmp_path, lines, *options))
    assert claimed(ds) == ["113100", *codes]
    assert "exceptions" not in ds.DeidentificationMethod
    statement = (
        "MODIFIED" if "113107" in codes else "UNMODIFIED" if "113106" in codes else "REMOVED"
    )
    assert ds.LongitudinalTemporalInformationModified == statement


@pytest.mark.parametrize(
    ("lines", "options"),
    [
        ("KEEP StudyDescription", [MODIFIED]),
        ("KEEP StudyDescription", ["clean-descriptors"]),
        ("KEEP contains:Description", ["clean-descriptors"]),
        ("KEEP PatientState", ["retain-patient-characteristics"]),
        ("KEEP ImageComments", []),
        ("REPLACE StudyDescription func:clean_text\nKEEP ProtocolName", []),
    ],
)
def test_recipe_that_departs_from_the_standard_claims_nothing_of_it(
    tmp_path: Path, lines: str, options: list[str]
) -> None:
    """A description kept word for word is neither the basic profile nor Clean Descriptors."""
    policy = recipe_policy(tmp_path, lines, *options)
    for made in (policy, policy.with_clean_pixels):
        ds = output(made)
        assert "DeidentificationMethodCodeSequence" not in ds
        assert ds.PatientIdentityRemoved == "YES"
        assert "with exceptions" in ds.DeidentificationMethod  # Type 1C: it must say something
        assert len(ds.DeidentificationMethod) <= 64


def test_example_recipe_claims_what_its_comments_say(tmp_path: Path) -> None:
    """The recipe that comes with the package departs from nothing."""
    example = Path(__file__).parents[2] / "anonymizer" / "profiles" / "research.deid"
    policy = apply_recipe(profile_with(options_named([MODIFIED])), example)
    assert claimed(output(policy)) == ["113100", "113105", "113107", "113108", "113109"]
