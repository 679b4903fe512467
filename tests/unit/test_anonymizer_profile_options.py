"""Options by name, what cannot be asked for, and the two cleaners behind them."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image, ImageDraw, ImageFont

from anonymizer import PseudonymKeys, deidentify_instance
from anonymizer.descriptors import cleaned_text
from anonymizer.encoding import Element
from anonymizer.errors import RecipeError
from anonymizer.options import DEFAULT_OPTIONS, Option, options_named
from anonymizer.private import safe_private_elements
from anonymizer.profile import PrivateAttribute, basic_policy, profile_with
from node.settings import BadSettings, Deidentify
from node.wiring import policy_with
from tests.identified_ct import ct_bytes, ct_instance, part10

KEYS = PseudonymKeys.from_secret(bytes(32))


def test_default_is_modified_dates() -> None:
    """The policy that the pipeline uses without a word is the one it always used."""
    assert profile_with(DEFAULT_OPTIONS) is profile_with(options_named(
        ["retain-longitudinal-modified-dates"]
    ))  # fmt: skip
    assert basic_policy().digest == policy_with(Deidentify()).digest


def test_every_option_has_its_own_digest() -> None:
    """No two sets of options are mistaken for each other in the audit."""
    sets = [frozenset({option}) for option in Option]
    assert len({profile_with(options).digest for options in (*sets, frozenset())}) == 12


@pytest.mark.parametrize(
    ("names", "cause"),
    [
        (["retain-everything"], "no de-identification option 'retain-everything'"),
        (["retain-longitudinal-full-dates", "retain-longitudinal-modified-dates"], "cannot both"),
    ],
)
def test_what_cannot_be_carried_out_stops_the_start(names: list[str], cause: str) -> None:
    """Unknown, contradictory or unbuilt options are errors, in the library and in the node."""
    with pytest.raises(RecipeError, match=cause):
        profile_with(options_named(names))
    with pytest.raises(BadSettings, match=r"deidentify\.options"):
        policy_with(Deidentify(options=tuple(names)))


def test_node_refuses_to_retain_uids() -> None:
    """The compute zone never sees an original UID."""
    with pytest.raises(BadSettings, match=r"retain-uids"):
        policy_with(Deidentify(options=("retain-uids",)))


def test_clean_pixels_are_claimed_by_what_was_cleaned_only() -> None:
    """113101 stands in no output whose pixels nobody touched."""
    policy = profile_with(frozenset({Option.CLEAN_PIXEL_DATA}))
    assert "113101" not in dict(policy.methods)
    assert list(dict(policy.with_clean_pixels.methods)) == ["113100", "113101"]
    assert policy.with_clean_pixels is policy.with_clean_pixels


def test_command_cleans_pixels_with_a_preview_or_holds_the_image(tmp_path: Path) -> None:
    """Without --previews it does not start; an image without readable text stays held."""
    source, previews = tmp_path / "in", tmp_path / "previews"
    source.mkdir()
    (source / "blank").write_bytes(ct_bytes(BurnedInAnnotation="YES", size=64))
    command = [sys.executable, "-m", "anonymizer", str(source), str(tmp_path / "out")]
    command += ["--option", "clean-pixel-data"]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 2
    command += ["--previews", str(previews)]
    run = subprocess.run(command, check=False, capture_output=True, text=True)
    assert run.returncode == 1
    assert "BurnedInText" in run.stdout or "OcrUnavailable" in run.stdout
    assert not (tmp_path / "out").exists()


def test_command_takes_options_and_keeps_no_vault_for_original_uids(tmp_path: Path) -> None:
    """`--option` changes the output; with retained UIDs there is no way back to seal."""
    source = tmp_path / "in"
    source.mkdir()
    (source / "a").write_bytes(ct_bytes(DeviceSerialNumber="SN-1"))
    command = [sys.executable, "-m", "anonymizer", str(source)]
    one = [*command, str(tmp_path / "one"), "--option", "retain-device-identity"]
    subprocess.run(one, check=True, capture_output=True)
    ds = pydicom.dcmread(next((tmp_path / "one").rglob("*.dcm")))
    assert ds.DeviceSerialNumber == "SN-1"
    assert ds.LongitudinalTemporalInformationModified == "REMOVED"
    assert ds.StudyDate == ""
    two = [*command, str(tmp_path / "two"), "--option", "retain-uids", "--vault", str(tmp_path)]
    assert subprocess.run(two, check=False, capture_output=True).returncode == 2


def test_retained_institution_does_not_count_as_a_leak() -> None:
    """Its name may stand where it is retained, in clear and in kept text."""
    options = frozenset({Option.RETAIN_INSTITUTION_IDENTITY})
    data = ct_bytes(InstitutionName="Overbrook", Manufacturer="Overbrook Scanners")
    ds = pydicom.dcmread(io.BytesIO(deidentify_instance(data, profile_with(options), KEYS).data))
    assert (ds.InstitutionName, ds.Manufacturer) == ("Overbrook", "Overbrook Scanners")


def test_full_dates_stay_but_the_birth_date_goes() -> None:
    """A study on the birthday itself is held back: the one cannot be told from the other."""
    policy = profile_with(frozenset({Option.RETAIN_FULL_DATES}))
    ds = pydicom.dcmread(io.BytesIO(deidentify_instance(ct_bytes(), policy, KEYS).data))
    assert ds.StudyDate == "20240517"
    assert ds.AcquisitionDateTime == "20240517101112.250000+0200"
    assert ds.PatientBirthDate == ""


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("CT Chest w/o contrast 5.0 B30f", "CT Chest w/o contrast 5.0"),
        ("t2_tse_sag_320", "t2 tse sag 320"),
        ("Thorax, Dr. Lung 2019", "Thorax"),
        ("Mrs Featherstone thorax 2019-03-04 axial", "thorax axial"),
        ("Abdomen 12.03.1999 1.2.840.3 555123456", "Abdomen"),
        ("Überweisung: Leber 3mm", "3mm"),
        ("943 476 5919 KNEE", "KNEE"),
        ("knee 020 7946 0958", "knee"),
        ("12 03 56 axial", "axial"),
        ("12/03 56 axial", "axial"),
        ("943 Zzyzx 476 knee 2 Zzyzx 3", "knee 2 3"),
        ("9434 765919 knee", "knee"),
        ("120 kV 512 3mm 5.0 1.25", "120 kV 512 3mm"),
        ("", ""),
    ],
)
def test_descriptor_keeps_vocabulary_only(text: str, cleaned: str) -> None:
    """Names, years, dates, UIDs and long numbers go; anatomy, protocol and negation stay."""
    assert cleaned_text(text) == cleaned


@pytest.mark.parametrize(
    ("patient_id", "described"),
    [
        ("4711", "Chest 4711 axial 3"),
        ("0047", "Chest 47 axial 3"),
        ("4711", "Chest 47 11 axial 3"),
        ("12-34", "Chest 12/34 axial 3"),
    ],
)
def test_a_short_number_of_the_patient_goes_from_a_description(
    patient_id: str, described: str
) -> None:
    """Four digits are chance anywhere else; beside words that stay they are the patient's."""
    policy = profile_with(frozenset({Option.CLEAN_DESCRIPTORS}))
    data = ct_bytes(PatientID=patient_id, StudyID="", SeriesDescription=described)
    made = pydicom.dcmread(io.BytesIO(deidentify_instance(data, policy, KEYS).data))
    assert set(made.SeriesDescription.split()) <= {"Chest", "axial", "3"}
    assert "Chest" in made.SeriesDescription


@pytest.mark.parametrize(
    ("vr", "value", "stays"),
    [("IS", b"800", True), ("UN", b"800 ", True), ("IS", b"SMITH", False), ("LO", b"800", False)],
)
def test_safe_private_needs_creator_vr_and_form(vr: str, value: bytes, stays: bool) -> None:
    """A value that is not what the list says is not safe, nor one of another creator."""
    safe = {PrivateAttribute("SIEMENS MR HEADER", 0x0019, 0x0C): "IS"}
    creator = Element(0x00190011, "LO", b"SIEMENS MR HEADER ")
    element = Element(0x0019110C, vr, value)
    kept = [found.tag for found in safe_private_elements([creator, element], safe)]
    assert kept == ([0x00190011, 0x0019110C] if stays else [])
    other = Element(0x00190011, "LO", b"SOMEBODY")
    assert safe_private_elements([other, element], safe) == []
    assert safe_private_elements([element], safe) == []


@pytest.mark.skipif(shutil.which("tesseract") is None, reason="needs tesseract")
def test_command_blanks_what_is_written_in_the_pixels(tmp_path: Path) -> None:
    """The name in the pixels is gone, the output claims it, a picture is there to look at."""
    picture = Image.new("L", (384, 256))
    font = ImageFont.load_default(size=32)
    ImageDraw.Draw(picture).text((20, 30), "FEATHERSTONE 774411", fill=255, font=font)
    ds = ct_instance(size=256, BurnedInAnnotation="YES")
    ds.Columns = 384
    ds.PixelData = (np.asarray(picture).astype(np.uint16) * 16).tobytes()
    source, out, previews = tmp_path / "in", tmp_path / "out", tmp_path / "previews"
    source.mkdir()
    (source / "a").write_bytes(part10(ds))
    command = [sys.executable, "-m", "anonymizer", str(source), str(out)]
    command += ["--option", "clean-pixel-data", "--previews", str(previews)]
    subprocess.run(command, check=True, capture_output=True)
    cleaned = pydicom.dcmread(next(out.rglob("*.dcm")))
    assert (cleaned.pixel_array[20:80, 10:380] == cleaned.pixel_array[0, 0]).mean() > 0.99
    codes = [item.CodeValue for item in cleaned.DeidentificationMethodCodeSequence]
    assert codes == ["113100", "113101"]
    assert [path.stem for path in previews.iterdir()] == [cleaned.SOPInstanceUID]
