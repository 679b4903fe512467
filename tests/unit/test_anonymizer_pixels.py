"""Which images are held because their pixels may show the patient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    EncapsulatedPDFStorage,
    MRImageStorage,
    SecondaryCaptureImageStorage,
    UltrasoundImageStorage,
    VLEndoscopicImageStorage,
    XRayRadiationDoseSRStorage,
)

from anonymizer import PseudonymKeys, basic_policy, deidentify_instance
from anonymizer.errors import AnonymizerError, BurnedInText
from anonymizer.pixels import beyond_blanking, burned_in_risk
from tests.identified_ct import ct_bytes, ct_instance

KEYS = PseudonymKeys.from_secret(bytes(32))
SHARED = Path(__file__).parents[3] / "shared" / "data"
BURNED_IN = SHARED / "burned_in_pseudophi_presidio"


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"BurnedInAnnotation": "NO"},
        {"ImageType": ["DERIVED", "PRIMARY", "AXIAL"]},
        {"ImageType": ["DERIVED", "SECONDARY", "MPR"], "BurnedInAnnotation": "NO"},
        {"SOPClassUID": MRImageStorage, "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"]},
        {"SOPClassUID": ComputedRadiographyImageStorage, "BurnedInAnnotation": "NO"},
    ],
)
def test_images_from_the_detector_pass(attributes: dict[str, Any]) -> None:
    """Original slices pass; others pass if the source states that nothing is burned in."""
    assert burned_in_risk(ct_instance(**attributes)) is None


@pytest.mark.parametrize(
    "attributes",
    [
        {"BurnedInAnnotation": "YES"},
        {"RecognizableVisualFeatures": "YES"},
        {"ConversionType": "WSD"},
        {"ImageType": ["DERIVED", "SECONDARY", "MPR"]},
        {"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"], "BurnedInAnnotation": "NO"},
        {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
        {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL", "DOSE_INFO"]},
        {"ImageType": ""},
        {"PhotometricInterpretation": "RGB"},
        {"SOPClassUID": ComputedRadiographyImageStorage},
        {"SOPClassUID": SecondaryCaptureImageStorage, "BurnedInAnnotation": "NO"},
        {"SOPClassUID": UltrasoundImageStorage},
        {"SOPClassUID": VLEndoscopicImageStorage},
        {"SOPClassUID": EncapsulatedPDFStorage},
        {"SOPClassUID": XRayRadiationDoseSRStorage},
    ],
)
def test_images_that_may_show_text_are_held(attributes: dict[str, Any]) -> None:
    """Each of these is held for a person, with a reason that shows no value."""
    reason = burned_in_risk(ct_instance(**attributes))
    assert reason is not None
    with pytest.raises(BurnedInText, match="pixels may show"):
        deidentify_instance(ct_bytes(**attributes), basic_policy(), KEYS)


def test_overlay_in_unused_pixel_bits_is_held() -> None:
    """Removing group 6000 would leave the drawing in the high bits of the pixels."""
    ds = ct_instance()
    ds.add_new(0x60000102, "US", 12)
    assert "overlay" in str(burned_in_risk(ds))
    ds.add_new(0x60003000, "OW", b"\0\0")
    assert burned_in_risk(ds) is None


@pytest.mark.skipif(not BURNED_IN.is_dir(), reason="needs ../shared/data")
@pytest.mark.parametrize("path", sorted(BURNED_IN.glob("*.d*")), ids=lambda path: path.name)
def test_real_images_with_burned_in_names_do_not_pass(path: Path) -> None:
    """Four images with names in their pixels, none with Burned In Annotation set."""
    assert burned_in_risk(pydicom.dcmread(path, stop_before_pixels=True)) is not None
    with pytest.raises(AnonymizerError):
        deidentify_instance(path, basic_policy(), KEYS)


def test_a_sop_class_that_nobody_registered_is_not_repeated() -> None:
    """Behind a known beginning a sender may have put a patient's number."""
    held = ct_instance(SOPClassUID=f"{SecondaryCaptureImageStorage}.12345678")
    assert "12345678" not in str(burned_in_risk(held))
    assert "PS3.6 does not list" in str(burned_in_risk(held))
    photograph = ct_instance(SOPClassUID="1.2.840.10008.5.1.4.1.1.77.1.12345678")
    assert "12345678" not in str(beyond_blanking(photograph))
    assert str(burned_in_risk(ct_instance(SOPClassUID=SecondaryCaptureImageStorage))).startswith(
        "Secondary Capture Image Storage"
    )
