"""Held by default, kind by kind, over the real files of ../shared/data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.errors import InvalidDicomError
from pydicom.uid import (
    EncapsulatedCDAStorage,
    EncapsulatedPDFStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    UltrasoundMultiFrameImageStorage,
    VideoEndoscopicImageStorage,
    VLPhotographicImageStorage,
    XRayRadiationDoseSRStorage,
)

from anonymizer import PseudonymKeys, basic_policy, deidentify_instance
from anonymizer.errors import AnonymizerError, BurnedInText
from anonymizer.pixels import RECONSTRUCTED
from tests.identified_ct import ct_bytes

KEYS = PseudonymKeys.from_secret(bytes(32))
SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")

# Kind: the files of that kind, and what the message says.
REAL = {
    "secondary capture": (
        ("pydicom_data_odd/JLSL_*_1F.dcm", "pydicom_data_odd/SC_*", "pydicom_data_odd/HTJ2K*",
         "pydicom_data_odd/mlut_18.dcm", "*/TestPattern_*", "wg04_modalities/MG1_*",
         "wg04_modalities/NM1_*[RLE]", "wg04_modalities/VL1_*", "wg04_modalities/XA1_*",
         "burned_in_pseudophi_presidio/RGB_ORIGINAL.dcm"),
        "Secondary Capture Image Storage holds screens",
    ),
    "ultrasound": (
        ("pydicom_data_odd/OBXXXX1A*", "pydicom_data_odd/color-pl.dcm",
         "pydicom_data_odd/gdcm-US-ALOKA-16_big.dcm", "*/US-YBR_FULL_422-EVRLE.dcm",
         "*/no-pixel-spacing.dcm", "wg04_modalities/US1_*"),
        "Ultrasound .*holds screens",
    ),
    "microscopy": (("seg_sr_highdicom/sm_image*.dcm",), "Microscopy Image Storage holds screens"),
    "radiograph that states nothing": (
        ("wg04_modalities/RG*", "burned_in_pseudophi_presidio/0_ORIGINAL_compressed.dcm"),
        r"Burned In Annotation \(0028,0301\) is absent",
    ),
    "localizer": (
        ("burned_in_pseudophi_presidio/2_ORIGINAL.dicom", "head_ct_*/ct_sr/Topogramm*/*.dcm"),
        r"Image Type \(0008,0008\) is LOCALIZER",
    ),
    "derived slice": (
        ("wg04_modalities/CT1_RLE", "wg04_modalities/CT2_JLS?", "wg04_modalities/MR1_*",
         "wg04_modalities/MR4_RLE",
         "pydicom_data_odd/MR-SIEMENS-DICOM-WithOverlays.dcm"),
        r"Image Type \(0008,0008\) is not PRIMARY",
    ),
    "converted film": (("pydicom_data_odd/explicit_VR-UN.dcm",), r"Conversion Type \(0008,0064\)"),
}  # fmt: skip

# Kinds that no real file is of.
MADE: dict[str, dict[str, Any]] = {
    "document, PDF": {"SOPClassUID": EncapsulatedPDFStorage},
    "document, CDA": {"SOPClassUID": EncapsulatedCDAStorage},
    "dose report": {"SOPClassUID": XRayRadiationDoseSRStorage},
    "dose page": {"ImageType": ["DERIVED", "PRIMARY", "DOSE_INFO"], "BurnedInAnnotation": "NO"},
    "screen save": {
        "ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"], "BurnedInAnnotation": "NO",
    },
    "capture of several frames": {"SOPClassUID": MultiFrameTrueColorSecondaryCaptureImageStorage},
    "ultrasound loop": {"SOPClassUID": UltrasoundMultiFrameImageStorage},
    "video": {"SOPClassUID": VideoEndoscopicImageStorage, "BurnedInAnnotation": "NO"},
    "photograph": {"SOPClassUID": VLPhotographicImageStorage, "BurnedInAnnotation": "NO"},
    "burned in, as it says": {"BurnedInAnnotation": "YES"},
    "face, as it says": {"RecognizableVisualFeatures": "YES"},
}  # fmt: skip


def files_of(kind: str) -> list[Path]:
    patterns, _ = REAL[kind]
    return sorted({path for pattern in patterns for path in SHARED.glob(pattern)})


@needs_data
@pytest.mark.parametrize("kind", REAL)
def test_real_files_of_a_risky_kind_are_held(kind: str) -> None:
    """Every one, with its reason and what a person can do."""
    files = files_of(kind)
    assert files
    for path in files:
        with pytest.raises(BurnedInText, match=REAL[kind][1]) as held:
            deidentify_instance(path, basic_policy(), KEYS)
        assert "look at the image" in held.value.remedy.lower(), path.name


@pytest.mark.parametrize("kind", MADE)
def test_made_files_of_a_risky_kind_are_held(kind: str) -> None:
    """Whatever Burned In Annotation claims of a kind that is drawn."""
    with pytest.raises(BurnedInText, match="pixels may show") as held:
        deidentify_instance(ct_bytes(**MADE[kind]), basic_policy(), KEYS)
    assert held.value.remedy


@needs_data
def test_no_image_of_another_origin_than_a_detector_passes() -> None:
    """Of all real images only original slices pass, and what states that nothing is burned in."""
    passed = held = 0
    for path in sorted(path for path in SHARED.rglob("*") if path.is_file()):
        try:
            ds = pydicom.dcmread(path, defer_size=1024)
        except InvalidDicomError:
            continue
        if "PixelData" not in ds or ds.get("Modality") == "SEG":
            continue
        try:
            deidentify_instance(path, basic_policy(), KEYS)
        except BurnedInText:
            held += 1
            continue
        except AnonymizerError:
            continue
        passed += 1
        if ds.get("BurnedInAnnotation") != "NO":
            image_type = [term.strip() for term in ds.ImageType]
            assert ds.SOPClassUID in RECONSTRUCTED, path.name
            assert image_type[1] == "PRIMARY", path.name
            assert "LOCALIZER" not in image_type, path.name
            assert ds.SamplesPerPixel == 1, path.name
    assert held >= sum(len(files_of(kind)) for kind in REAL)
    assert passed > 100
