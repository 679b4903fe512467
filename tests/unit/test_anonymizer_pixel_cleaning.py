"""Burned-in text is blanked where it is found, and nothing is called clean without proof."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000Lossless, RLELossless

from anonymizer import PseudonymKeys, basic_policy, deidentify_instance
from anonymizer.errors import BurnedInText, OcrUnavailable
from anonymizer.identity import identifiers_of
from anonymizer.ocr import find_words, tesseract_path
from anonymizer.part10 import read_instance
from anonymizer.pixel_cleaning import clean_pixels, deidentify_with_clean_pixels
from tests.identified_ct import ct_instance, part10

KEYS = PseudonymKeys.from_secret(bytes(range(32)))
BURNED_IN = Path(__file__).parents[3] / "shared" / "data" / "burned_in_pseudophi_presidio"
needs_tesseract = pytest.mark.skipif(
    tesseract_path() is None, reason="tesseract is not installed (Debian: tesseract-ocr)"
)
TEXT_BOX = (20, 20, 420, 70)
ROWS, COLUMNS = 300, 500


def drawn_image(text: str = "FEATHERSTONE QUILLON", **attributes: Any) -> Dataset:
    """A smooth image of 500 x 300 pixels with ``text`` drawn into TEXT_BOX by Pillow."""
    ramp = np.tile(np.linspace(20, 120, COLUMNS), (ROWS, 1)).astype(np.uint8)
    image = Image.fromarray(ramp)
    if text:
        ImageDraw.Draw(image).text((30, 30), text, fill=255, font=ImageFont.load_default(26))
    ds = ct_instance(**{"ImageType": ["DERIVED", "SECONDARY", "MPR"], **attributes})
    ds.Rows, ds.Columns = ROWS, COLUMNS
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit, ds.PixelRepresentation = 15, 0
    ds.PixelData = np.asarray(image).astype("<u2").tobytes()
    return ds


def pixels_of(data: bytes) -> Any:
    return pydicom.dcmread(io.BytesIO(data)).pixel_array


def is_identified_in_pixels(data: bytes, original: bytes) -> bool:
    """Whether OCR of ``data`` reads an identifier that the header of ``original`` states."""
    identifiers = identifiers_of(read_instance(original).elements)
    pixels = pixels_of(data).astype(float)
    picture = (pixels / max(pixels.max(), 1) * 255).astype(np.uint8)
    return any(identifiers.occurs_in(word.text) for word in find_words(picture))


@needs_tesseract
@pytest.mark.parametrize("syntax", [None, RLELossless, JPEG2000Lossless])
def test_drawn_name_is_blanked_and_the_rest_of_the_image_stays(syntax: str | None) -> None:
    """OCR reads the name before and not after; pixels away from it are what they were."""
    ds = drawn_image()
    before = ds.pixel_array.copy()
    if syntax:
        ds.compress(syntax, generate_instance_uid=False)
    original = part10(ds)
    assert is_identified_in_pixels(original, original)
    cleaned = clean_pixels(original)
    assert not is_identified_in_pixels(cleaned.data, original)
    after = pixels_of(cleaned.data)
    assert (after[100:] == before[100:]).all()
    left, top, right, bottom = TEXT_BOX
    assert (before[top:bottom, left:right] == 255).any()
    assert not (after == 255).any()


@needs_tesseract
def test_cleaned_image_is_deidentified_and_says_how() -> None:
    """Code 113101 is claimed with the basic profile, and only then does the image pass."""
    original = part10(drawn_image())
    with pytest.raises(BurnedInText):
        deidentify_instance(original, basic_policy(), KEYS)
    result, _ = deidentify_with_clean_pixels(original, basic_policy(), KEYS)
    ds = pydicom.dcmread(io.BytesIO(result.data))
    claimed = {item.CodeValue for item in ds.DeidentificationMethodCodeSequence}
    assert {"113100", "113101"} <= claimed
    assert ds.BurnedInAnnotation == "NO"


@needs_tesseract
def test_preview_shows_before_and_after() -> None:
    """Both pictures side by side: the text stands in the left one only."""
    cleaned = clean_pixels(part10(drawn_image()))
    preview = np.asarray(Image.open(io.BytesIO(cleaned.preview_png)).convert("L"))
    assert preview.shape == (ROWS, 2 * COLUMNS + 8)
    left, right = preview[:, :COLUMNS], preview[:, COLUMNS + 8 :]
    assert (left[30:60, 30:330] > 240).sum() > 100
    assert (right[30:60, 30:330] > 240).sum() == 0


@needs_tesseract
def test_only_this_patients_lines_go_where_that_is_asked() -> None:
    """Without ``any_text`` a caption stays and the name goes."""
    original = part10(drawn_image("LEFT LATERAL"))
    with pytest.raises(BurnedInText, match="No text was found"):
        clean_pixels(original, any_text=False)
    assert clean_pixels(original).regions


@needs_tesseract
def test_image_without_text_stays_held() -> None:
    """Finding nothing is no proof that there is nothing."""
    with pytest.raises(BurnedInText, match="No text was found"):
        clean_pixels(part10(drawn_image("")))


@needs_tesseract
@pytest.mark.skipif(not BURNED_IN.is_dir(), reason="needs ../shared/data")
@pytest.mark.parametrize("name", ["0_ORIGINAL_compressed.dcm", "2_ORIGINAL.dicom"])
def test_real_burned_in_names_can_no_longer_be_read(name: str) -> None:
    """OCR of the cleaned image finds none of the header's identifiers."""
    original = (BURNED_IN / name).read_bytes()
    cleaned = clean_pixels(original)
    assert not is_identified_in_pixels(cleaned.data, original)
    assert cleaned.regions


def test_rectangles_known_for_the_device_are_blanked_without_ocr() -> None:
    """CTP's rectangle of a LightSpeed dose page: the upper 121 rows."""
    ds = drawn_image(
        ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"], ManufacturerModelName="LightSpeed VCT"
    )
    before = ds.pixel_array
    cleaned = clean_pixels(part10(ds), ocr=False)
    after = pixels_of(cleaned.data)
    assert {region.source for region in cleaned.regions} == {"device rectangle"}
    assert (after[:121] == before.min()).all()
    assert (after[122:] == before[122:]).all()


def test_unknown_device_without_ocr_stays_held() -> None:
    """No rectangle, no OCR: nothing was done, so nothing is claimed."""
    with pytest.raises(BurnedInText, match="No text was found"):
        clean_pixels(part10(drawn_image()), ocr=False)


def test_missing_tesseract_is_said_clearly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the program and the package that holds it."""
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(OcrUnavailable, match="tesseract") as caught:
        clean_pixels(part10(drawn_image()))
    assert "tesseract-ocr" in caught.value.remedy


def test_regions_show_no_text() -> None:
    """What is printed of a cleaned image names nobody."""
    ds = drawn_image(
        ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"], ManufacturerModelName="LightSpeed VCT"
    )
    assert "Featherstone" not in repr(clean_pixels(part10(ds), ocr=False))
