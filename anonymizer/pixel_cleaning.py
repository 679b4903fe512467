"""Blank text that is burned into pixels: an opt-in for images that are held otherwise.

Two ways to find it, both used unless one is switched off:

- the rectangles that pydicom/deid ships, which CTP collected per device model;
- an OCR pass with tesseract, repeated until nothing is found.

What comes back is for a person to look at: ``preview_png`` shows before and after. An image where
neither way finds anything is not called clean, it stays held: OCR overlooks handwriting, faint text
and scripts it was not trained for. So it does where an identifier of the patient can still be read.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
import pydicom
from PIL import Image, ImageDraw
from pydicom.dataset import FileDataset
from pydicom.uid import ExplicitVRLittleEndian

from anonymizer.deidentify import DeidentifiedInstance, deidentify_instance
from anonymizer.errors import BurnedInText, Unreadable, Unsupported
from anonymizer.identity import Identifiers, identifiers_of
from anonymizer.keys import PseudonymKeys
from anonymizer.ocr import Word, find_words
from anonymizer.part10 import DAMAGE, read_instance
from anonymizer.profile import Policy

_MAX_FRAMES = 64
_MAX_ROUNDS = 4

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Region:
    """A rectangle that was blanked, in pixels of every frame; right and bottom are outside it."""

    left: int
    top: int
    right: int
    bottom: int
    source: str
    """``device rectangle`` or ``text``."""


@dataclass(frozen=True)
class Cleaned:
    """An instance whose pixels were redacted; its attributes are still the patient's."""

    data: bytes = field(repr=False)
    """Part 10 bytes, Explicit VR Little Endian, Burned In Annotation NO."""
    regions: tuple[Region, ...]
    preview_png: bytes = field(repr=False)
    """Before and after, side by side, with the regions framed. It shows the patient: for the
    hospital's own administrators."""


def clean_pixels(
    data: bytes, *, rectangles: bool = True, ocr: bool = True, any_text: bool = True
) -> Cleaned:
    """Blank burned-in text in the pixels of one instance.

    Parameters
    ----------
    data
        A Part 10 instance. Compressed pixels are decoded; the result is never compressed again.
    rectangles
        Blank the rectangles known for the device.
    ocr
        Look for text with tesseract.
    any_text
        Blank whatever looks like text; otherwise only lines with an identifier of this patient.

    Raises
    ------
    BurnedInText
        Nothing was found, or an identifier can still be read after the last round.
    OcrUnavailable
        tesseract is wanted and not installed.
    Unreadable, Unsupported
        The pixels cannot be decoded, or are of a kind that cannot be blanked.
    """
    identifiers = identifiers_of(read_instance(data).elements)
    dataset = _decoded(data)
    pixels = _frames(dataset)
    before = _pictures(pixels, dataset)
    regions = _device_regions(dataset) if rectangles else []
    _blank(pixels, dataset, regions)
    if ocr:
        regions += _blank_text(pixels, dataset, identifiers, any_text)
    if not regions:
        raise BurnedInText("No text was found to blank: the pixels may still show the patient")
    _store(pixels, dataset)
    shown = max(range(len(before)), key=lambda index: float(before[index].std()))
    after = _pictures(pixels, dataset)
    return Cleaned(
        _written(dataset), tuple(regions), _preview(before[shown], after[shown], regions)
    )


def deidentify_with_clean_pixels(
    data: bytes, policy: Policy, keys: PseudonymKeys, *, rectangles: bool = True, ocr: bool = True
) -> tuple[DeidentifiedInstance, Cleaned]:
    """De-identify an image after its pixels were cleaned, and say so (code 113101).

    Raises what :func:`clean_pixels` and :func:`anonymizer.deidentify.deidentify_instance` raise:
    kinds of objects that are drawn as a whole (Secondary Capture, ultrasound) stay held.
    """
    cleaned = clean_pixels(data, rectangles=rectangles, ocr=ocr)
    return deidentify_instance(cleaned.data, policy.with_clean_pixels, keys), cleaned


# ---------------------------------------------------------------- what to blank


def _device_regions(dataset: FileDataset) -> list[Region]:
    """The rectangles of deid's filter list whose conditions this header meets."""
    from deid.config import DeidRecipe
    from deid.dicom.pixels import has_burned_pixels

    # Read anew each time: deid writes what it finds in one image into its list.
    found = has_burned_pixels(dataset, deid=DeidRecipe(base=True, default_base="dicom"))
    regions = []
    for result in found["results"]:
        if any(kept for kept, _ in result["coordinates"]):
            continue  # says what to keep; no image is blanked by what it does not name
        for _, coordinates in result["coordinates"]:
            texts = coordinates if isinstance(coordinates, list) else [coordinates]
            for text in texts:
                left, top, right, bottom = (
                    (0, 0, int(dataset.Columns), int(dataset.Rows))
                    if str(text) == "all"
                    else (int(part) for part in str(text).split(","))
                )
                regions.append(Region(left, top, right, bottom, "device rectangle"))
    return regions


def _blank_text(
    pixels: Array, dataset: FileDataset, identifiers: Identifiers, any_text: bool
) -> list[Region]:
    """Blank words in every frame until a round finds none."""
    if len(pixels) > _MAX_FRAMES:
        raise Unsupported(f"More than {_MAX_FRAMES} frames to look for text in")
    regions: list[Region] = []
    for _ in range(_MAX_ROUNDS):
        found = []
        for picture in _pictures(pixels, dataset):
            words = find_words(picture)
            wanted = [word for word in words if any_text and _is_text(word)]
            wanted += _identifying(words, identifiers)
            found += [_region(word, pixels) for word in wanted]
        found = list(dict.fromkeys(found))
        if not found:
            return regions
        _blank(pixels, dataset, found)
        regions += found
    if any(_identifying(find_words(p), identifiers) for p in _pictures(pixels, dataset)):
        raise BurnedInText("An identifier can still be read in the pixels after they were cleaned")
    return regions


def _is_text(word: Word) -> bool:
    """Two letters or digits: one alone is what OCR makes of a rib."""
    return sum(map(str.isalnum, word.text)) >= 2


def _identifying(words: list[Word], identifiers: Identifiers) -> list[Word]:
    """All words of each line in which an identifier of the patient stands."""
    lines: dict[tuple[int, int, int], list[Word]] = {}
    for word in words:
        lines.setdefault(word.line, []).append(word)
    return [
        word
        for line in lines.values()
        if identifiers.occurs_in(" ".join(word.text for word in line))
        for word in line
    ]


def _region(word: Word, pixels: Array) -> Region:
    """The word's box with a margin: a third of its height above and below, its height beside it."""
    height = word.bottom - word.top
    margin = max(2, height // 3)
    rows, columns = pixels.shape[1:3]
    return Region(
        max(0, word.left - height),
        max(0, word.top - margin),
        min(columns, word.right + height),
        min(rows, word.bottom + margin),
        "text",
    )


# ---------------------------------------------------------------- pixels in and out


def _decoded(data: bytes) -> FileDataset:
    """The dataset with native pixels: what is compressed is decoded, colour as RGB."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's warnings quote values
            dataset = pydicom.dcmread(BytesIO(data))
            if dataset.file_meta.TransferSyntaxUID.is_compressed:
                dataset.decompress(generate_instance_uid=False)
            dataset.PixelData  # noqa: B018
    except (*DAMAGE, RuntimeError):
        raise Unreadable("The pixels cannot be decoded") from None
    return dataset


def _frames(dataset: FileDataset) -> Array:
    """The pixels, writable, shape (frames, rows, columns, samples)."""
    colour = str(dataset.PhotometricInterpretation)
    known = ("MONOCHROME1", "MONOCHROME2", "RGB", "PALETTE COLOR", "YBR_FULL")
    if colour not in known or dataset.BitsAllocated not in (8, 16, 32):
        raise Unsupported("Pixels of this Photometric Interpretation or depth cannot be blanked")
    big_endian = dataset.file_meta.TransferSyntaxUID.is_little_endian is False
    if big_endian:
        raise Unsupported("Big endian pixels cannot be blanked")
    kind = ("i" if dataset.PixelRepresentation else "u") + str(dataset.BitsAllocated // 8)
    rows, columns, samples = dataset.Rows, dataset.Columns, dataset.SamplesPerPixel
    frames = int(dataset.get("NumberOfFrames") or 1)
    count = frames * rows * columns * samples
    try:
        flat = np.frombuffer(dataset.PixelData, "<" + kind, count)
    except ValueError:
        raise Unreadable("Pixel Data (7FE0,0010) is shorter than its frames") from None
    if samples > 1 and dataset.get("PlanarConfiguration", 0) == 1:
        planes = flat.reshape(frames, samples, rows, columns)
        return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)).copy()
    return flat.reshape(frames, rows, columns, samples).copy()


def _blank(pixels: Array, dataset: FileDataset, regions: Iterable[Region]) -> None:
    """Paint ``regions`` of every frame in what this image shows as its darkest tone."""
    colour = str(dataset.PhotometricInterpretation)
    tone: Any = {
        "MONOCHROME1": pixels.max(),
        "MONOCHROME2": pixels.min(),
        "YBR_FULL": (0, 128, 128),
    }.get(colour, 0)
    for region in regions:
        pixels[:, region.top : region.bottom, region.left : region.right] = tone


def _store(pixels: Array, dataset: FileDataset) -> None:
    raw = pixels.tobytes()
    dataset.PixelData = raw + b"\0" * (len(raw) % 2)
    dataset["PixelData"].VR = "OB" if dataset.BitsAllocated == 8 else "OW"
    if dataset.SamplesPerPixel > 1:
        dataset.PlanarConfiguration = 0
    dataset.BurnedInAnnotation = "NO"


def _written(dataset: FileDataset) -> bytes:
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset.save_as(buffer, implicit_vr=False, little_endian=True)
    except DAMAGE:
        raise Unreadable("The instance cannot be written as Explicit VR Little Endian") from None
    return buffer.getvalue()


# ---------------------------------------------------------------- pictures


def _pictures(pixels: Array, dataset: FileDataset) -> list[np.ndarray[Any, np.dtype[np.uint8]]]:
    """Every frame as a person sees it, 8 bits per sample, grey or RGB."""
    colour = str(dataset.PhotometricInterpretation)
    pictures = []
    for frame in pixels:
        if colour == "RGB" and frame.dtype == np.uint8:
            pictures.append(frame.copy())
            continue
        grey = frame[..., 0].astype(np.float32)
        low, high = np.percentile(grey, (0.1, 99.9))
        if high <= low:
            low, high = float(grey.min()), float(grey.max()) or 1.0
        scaled = np.clip((grey - low) / max(high - low, 1e-6), 0, 1) * 255
        pictures.append((255 - scaled if colour == "MONOCHROME1" else scaled).astype(np.uint8))
    return pictures


def _preview(
    before: np.ndarray[Any, np.dtype[np.uint8]],
    after: np.ndarray[Any, np.dtype[np.uint8]],
    regions: Iterable[Region],
) -> bytes:
    """Both pictures side by side as PNG, the regions framed in the second."""
    left, right = (Image.fromarray(picture).convert("RGB") for picture in (before, after))
    draw = ImageDraw.Draw(right)
    for region in regions:
        draw.rectangle(
            (region.left, region.top, region.right - 1, region.bottom - 1), outline=(255, 160, 0)
        )
    both = Image.new("RGB", (left.width + right.width + 8, left.height))
    both.paste(left, (0, 0))
    both.paste(right, (left.width + 8, 0))
    buffer = BytesIO()
    both.save(buffer, "PNG")
    return buffer.getvalue()
