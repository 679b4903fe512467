"""Burned-in text is blanked where it is found, and nothing is called clean without proof."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000Lossless, RLELossless

from anonymizer import PseudonymKeys, basic_policy, deidentify_instance, ocr
from anonymizer.errors import BurnedInText, OcrUnavailable, Unreadable
from anonymizer.identity import identifiers_of
from anonymizer.ocr import find_words
from anonymizer.part10 import read_instance
from anonymizer.pixel_cleaning import (
    BY_IDENTIFIER,
    blanked,
    clean_pixels,
    deidentify_with_clean_pixels,
    find_regions,
    preview_png,
)
from anonymizer.pixel_frames import decoded, picture
from tests.identified_ct import ct_instance, part10

KEYS = PseudonymKeys.from_secret(bytes(range(32)))
BURNED_IN = Path(__file__).parents[3] / "shared" / "data" / "burned_in_pseudophi_presidio"
# What a person reads in the pictures, and where: left, top, right, bottom.
PLANTED = {
    "0_ORIGINAL_compressed.dcm": (
        "DAVIDSON DOUGLAS [M] 01.09.2012 DOB: 06.16.1976",
        (0, 0, 820, 84),
    ),
    "2_ORIGINAL.dicom": ("KAUFMAN SCOTT [M] 03.09.2012 DOB: 07.22.1943", (0, 0, 231, 28)),
}
TEXT_BOX = (20, 20, 420, 70)
ROWS, COLUMNS = 160, 440


def drawn_image(text: str = "FEATHERSTONE QUILLON", **attributes: Any) -> Dataset:
    """A smooth image of 440 x 160 pixels with ``text`` drawn into TEXT_BOX by Pillow."""
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
    words = find_words(picture(decoded(data), 0))
    return any(identifiers.occurs_in(word.text) for word in words)


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


def test_preview_shows_the_image_as_it_would_leave() -> None:
    """The region is outlined, the text in it is gone, and the original is not in the picture."""
    cleaned = clean_pixels(part10(drawn_image()))
    preview = np.asarray(Image.open(io.BytesIO(cleaned.preview_png)))
    assert preview.shape == (ROWS, COLUMNS, 3)
    [region] = cleaned.regions
    assert region.rule == BY_IDENTIFIER
    assert (preview[region.top, region.left : region.right] == (255, 160, 0)).all()
    white = (preview > 240).all(axis=-1)
    assert not white[region.top : region.bottom, region.left : region.right].any()


def test_the_same_bytes_give_the_same_regions() -> None:
    """What a person was shown is what is blanked later."""
    original = part10(drawn_image())
    assert find_regions(original) == find_regions(original)


def test_every_frame_is_read_and_blanked() -> None:
    """Text in the second frame only is blanked in both."""
    ds = drawn_image("")
    ds.PixelData += drawn_image().PixelData
    ds.NumberOfFrames = 2
    original = part10(ds)
    findings = find_regions(original)
    assert findings.frames == 2
    after = pixels_of(blanked(original, findings.regions))
    assert not (after == 255).any()
    assert preview_png(original, findings.regions, 1) != preview_png(original, (), 1)
    with pytest.raises(IndexError):
        preview_png(original, findings.regions, 2)


def test_image_without_text_stays_held() -> None:
    """Finding nothing is no proof that there is nothing."""
    with pytest.raises(BurnedInText, match="No text was found"):
        clean_pixels(part10(drawn_image("")))


def test_text_that_survives_the_passes_stays_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is still legible after the last pass is never called clean."""
    monkeypatch.setattr("anonymizer.pixel_cleaning._MAX_PASSES", 0)
    original = part10(drawn_image())
    assert find_regions(original).still_legible
    with pytest.raises(BurnedInText, match="can still be read"):
        clean_pixels(original)


@pytest.mark.skipif(not BURNED_IN.is_dir(), reason="needs ../shared/data")
@pytest.mark.parametrize("name", PLANTED)
def test_no_planted_word_of_the_real_images_is_legible_afterwards(name: str) -> None:
    """OCR reads most planted words before and none after; their place is one flat tone."""
    planted, (left, top, right, bottom) = PLANTED[name]
    words = planted.split()
    original = (BURNED_IN / name).read_bytes()
    identifiers = identifiers_of(read_instance(original).elements)
    read_before = " ".join(word.text for word in find_words(picture(decoded(original), 0)))
    assert sum(word in read_before for word in words) >= len(words) - 1
    assert identifiers.occurs_in(read_before)
    cleaned = clean_pixels(original)
    read_after = " ".join(word.text for word in find_words(picture(decoded(cleaned.data), 0)))
    assert not any(word in read_after for word in words)
    assert not identifiers.occurs_in(read_after)
    before, after = pixels_of(original), pixels_of(cleaned.data)
    changed = before != after
    assert changed[top:bottom, left:right].any()
    text = after[top:bottom, left:right][changed[top:bottom, left:right]]
    assert (text == text[0]).all()
    bright = before.min() if name.startswith("0") else before.max()  # MONOCHROME1 and 2
    assert (before[top:bottom, left:right] == bright).sum() > 500
    assert not (after[top:bottom, left:right] == bright).any()


@pytest.mark.skipif(not BURNED_IN.is_dir(), reason="needs ../shared/data")
@pytest.mark.parametrize("name", ["RGB_ORIGINAL.dcm", "0_ORIGINAL_no_pixels.dcm"])
def test_real_images_in_which_nothing_is_found_stay_held(name: str) -> None:
    """A fused image without visible text, and a header without pixels."""
    with pytest.raises((BurnedInText, Unreadable)):
        deidentify_with_clean_pixels((BURNED_IN / name).read_bytes(), basic_policy(), KEYS)


def test_rectangles_known_for_the_device_are_blanked_without_ocr() -> None:
    """CTP's rectangle of a LightSpeed dose page: the upper 121 rows, named by its rule."""
    ds = drawn_image(
        ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"], ManufacturerModelName="LightSpeed VCT"
    )
    before = ds.pixel_array
    cleaned = clean_pixels(part10(ds), ocr=False)
    after = pixels_of(cleaned.data)
    assert {region.rule for region in cleaned.regions} == {
        "rectangle of the device: LightSpeed Dose Report"
    }
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


@pytest.mark.parametrize(
    ("script", "timeout_s"),
    [
        ("exit 1", 60),
        ("kill -SEGV $$", 60),
        ("exit 0", 60),
        ("echo nonsense", 60),
        ("printf 'text\\tconf\\nx\\ty\\n'", 60),
        ("exec sleep 600", 0.2),
    ],
)
def test_a_tesseract_that_fails_never_lets_an_image_through(
    script: str, timeout_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it refuses, crashes, says nothing, talks nonsense or hangs."""
    program = tmp_path / "tesseract"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(ocr, "_TIMEOUT_S", timeout_s)
    with pytest.raises(Unreadable, match="tesseract"):
        clean_pixels(part10(drawn_image()))


def test_regions_show_no_text() -> None:
    """What is printed of a cleaned image names nobody."""
    assert "Featherstone" not in repr(clean_pixels(part10(drawn_image())))
    assert "FEATHERSTONE" not in repr(clean_pixels(part10(drawn_image())))
