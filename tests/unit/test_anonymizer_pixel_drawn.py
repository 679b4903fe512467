"""What is drawn is held; captures, ultrasound and screens may leave with their text blanked."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    EncapsulatedPDFStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
    UltrasoundImageStorage,
    UltrasoundMultiFrameImageStorage,
    VLPhotographicImageStorage,
    XRayRadiationDoseSRStorage,
)

from anonymizer import PseudonymKeys, basic_policy, deidentify_instance
from anonymizer.errors import BurnedInText, OcrUnavailable
from anonymizer.pixel_cleaning import (
    Region,
    clean_pixels,
    deidentify_blanked,
    deidentify_with_clean_pixels,
)
from tests.identified_ct import SECRETS, part10
from tests.part10 import errors_of
from tests.unit.test_anonymizer_pixel_cleaning import drawn_image, is_identified_in_pixels

KEYS = PseudonymKeys.from_secret(bytes(range(32)))
SHARED = Path(__file__).parents[3] / "shared" / "data"
RETIRED_ULTRASOUND = "1.2.840.10008.5.1.4.1.1.6"
# SOP Class, Photometric Interpretation, frames.
KINDS = [
    (SecondaryCaptureImageStorage, "MONOCHROME2", 1),
    (MultiFrameTrueColorSecondaryCaptureImageStorage, "RGB", 2),
    (UltrasoundImageStorage, "RGB", 1),
    (UltrasoundMultiFrameImageStorage, "PALETTE COLOR", 2),
    (RETIRED_ULTRASOUND, "MONOCHROME2", 1),
]
# Real captures and ultrasound of every Photometric Interpretation, grey and colour.
REAL = [
    *sorted(SHARED.glob("wg04_modalities/US1_*")),
    *sorted(SHARED.glob("wg04_modalities/[MNVX][GMLA]1_J2K?")),
    *sorted(SHARED.glob("pydicom_data_odd/OBXXXX1A_[2r]*frame.dcm")),
    *sorted(SHARED.glob("pydicom_data_odd/[mv]lut_*.dcm")),
    *sorted(SHARED.glob("ts_one_ct_15_syntaxes_cornerstone3d/TestPattern_*.dcm")),
]


def capture(sop_class_uid: str, photometric: str, frames: int, **attributes: Any) -> Dataset:
    """The patient's name on a smooth background, as this kind stores it in 8 bits."""
    ds = drawn_image(SOPClassUID=sop_class_uid, ConversionType="WSD", **attributes)
    samples = 3 if photometric == "RGB" else 1
    tones = np.repeat(ds.pixel_array.astype(np.uint8)[..., np.newaxis], samples, axis=-1)
    ds.PixelData = tones.tobytes() * frames
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.SamplesPerPixel, ds.PhotometricInterpretation = 7, samples, photometric
    if samples > 1:
        ds.PlanarConfiguration = 0
    if frames > 1:
        ds.NumberOfFrames = frames
    if photometric == "PALETTE COLOR":
        ramp = np.arange(256, dtype="<u2") * 257
        for colour in ("Red", "Green", "Blue"):
            setattr(ds, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
            setattr(ds, f"{colour}PaletteColorLookupTableData", ramp.tobytes())
    return ds


@pytest.mark.parametrize(("kind", "photometric", "frames"), KINDS)
def test_a_drawn_kind_is_held_and_leaves_only_blanked(
    kind: str, photometric: str, frames: int
) -> None:
    """Held as it is; cleaned, nobody's name is in pixels or header, and it is still that image."""
    original = part10(capture(kind, photometric, frames, BurnedInAnnotation="NO"))
    with pytest.raises(BurnedInText, match="holds screens"):
        deidentify_instance(original, basic_policy(), KEYS)
    assert is_identified_in_pixels(original, original)
    result, _ = deidentify_with_clean_pixels(original, basic_policy(), KEYS)
    assert not is_identified_in_pixels(result.data, original)
    assert not any(secret.encode() in result.data for secret in SECRETS)
    ds = pydicom.dcmread(io.BytesIO(result.data))
    assert ds.SOPClassUID == kind
    assert ds.PhotometricInterpretation == photometric
    assert int(ds.get("NumberOfFrames", 1)) == frames
    assert not (ds.pixel_array == 255).any()
    assert "113101" in {item.CodeValue for item in ds.DeidentificationMethodCodeSequence}
    assert ds.BurnedInAnnotation == "NO"
    assert ds.ConversionType == "WSD"


def test_a_screen_save_of_a_scanner_leaves_blanked() -> None:
    """A CT page whose Image Type says that it was drawn."""
    original = part10(drawn_image(ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"]))
    with pytest.raises(BurnedInText, match="drawn page"):
        deidentify_instance(original, basic_policy(), KEYS)
    result, _ = deidentify_with_clean_pixels(original, basic_policy(), KEYS)
    assert not is_identified_in_pixels(result.data, original)


def test_a_capture_is_not_cleaned_without_ocr(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where tesseract is missing nothing leaves."""
    monkeypatch.setenv("PATH", "/nonexistent")
    original = part10(capture(*KINDS[0]))
    with pytest.raises(OcrUnavailable, match="tesseract"):
        deidentify_with_clean_pixels(original, basic_policy(), KEYS)


@pytest.mark.parametrize("burned_in", ["YES", ""])
def test_a_capture_that_nobody_blanked_does_not_leave(burned_in: str) -> None:
    """Not even under the policy for cleaned pixels."""
    original = part10(capture(*KINDS[0], BurnedInAnnotation=burned_in))
    with pytest.raises(BurnedInText, match="pixels may show"):
        deidentify_instance(original, basic_policy().with_clean_pixels, KEYS)


@pytest.mark.parametrize(
    ("attributes", "why"),
    [
        ({"SOPClassUID": EncapsulatedPDFStorage}, "is a document"),
        ({"SOPClassUID": XRayRadiationDoseSRStorage}, "is a document"),
        ({"SOPClassUID": VLPhotographicImageStorage}, "leaves a face"),
        ({"RecognizableVisualFeatures": "YES"}, "leaves a face"),
        ({"ImageType": ["DERIVED", "PRIMARY", "DOSE_INFO"]}, "page of text"),
        (
            {
                "SOPClassUID": SecondaryCaptureImageStorage,
                "ImageType": ["DERIVED", "SECONDARY", "DOSE REPORT"],
            },
            "page of text",
        ),
    ],
)
def test_what_blanking_does_not_make_clean_stays_held(attributes: dict[str, Any], why: str) -> None:
    """Whether text is looked for first or regions are given; the message says why."""
    original = part10(drawn_image(**attributes))
    with pytest.raises(BurnedInText, match=why):
        clean_pixels(original)
    with pytest.raises(BurnedInText, match=why):
        deidentify_blanked(original, [Region(0, 0, 440, 160, "all")], basic_policy(), KEYS)


@pytest.mark.skipif(
    shutil.which("dciodvfy") is None or not SHARED.is_dir(), reason="needs dicom3tools and data"
)
def test_real_drawn_files_are_deidentified_by_their_tables(tmp_path: Path) -> None:
    """Blanked, dciodvfy finds no error that the original did not have."""
    assert len(REAL) >= 20
    for path in REAL:
        made = deidentify_blanked(
            path.read_bytes(), [Region(0, 0, 64, 8, "test")], basic_policy(), KEYS
        )
        written = tmp_path / "out.dcm"
        written.write_bytes(made.data)
        assert errors_of(written) - errors_of(path) == set(), path.name
