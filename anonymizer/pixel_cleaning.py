"""Blank text that is burned into pixels: an opt-in for images that are held otherwise.

Two ways to find it, both used unless one is switched off:

- the rectangles that pydicom/deid ships, which CTP collected per device model;
- OCR with tesseract, repeated until a pass over the blanked picture reads nothing any more.

:func:`find_regions` says what to blank and which rule wants it, :func:`blanked` does it,
:func:`preview_png` shows a person the outcome. OCR overlooks handwriting, faint text and scripts
that it was not trained for. So an image is called clean only if something was found and nothing
can be read any more, or if a person has looked at what would leave.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO

from PIL import Image, ImageDraw

from anonymizer.deidentify import DeidentifiedInstance, deidentify_instance
from anonymizer.errors import BurnedInText, Unsupported
from anonymizer.identity import Identifiers, identifiers_of
from anonymizer.keys import PseudonymKeys
from anonymizer.ocr import Word, find_words
from anonymizer.part10 import read_instance
from anonymizer.pixel_frames import Frames, decoded, encoded, picture
from anonymizer.profile import Policy

MAX_FRAMES = 64
_MAX_PASSES = 3
# Percent. The first pass takes doubtful words too; what is read above this afterwards is no noise.
_LEGIBLE = 60.0
# Of the picture's height. What OCR reads in anatomy is as large as a bone.
_TALLEST = 1 / 8
_OUTLINE = (255, 160, 0)


@dataclass(frozen=True)
class Region:
    """A rectangle to blank, in pixels of every frame; right and bottom are outside it."""

    left: int
    top: int
    right: int
    bottom: int
    rule: str
    """What wants it: the label in deid's list, or OCR."""


@dataclass(frozen=True)
class Findings:
    """What to blank in one image, and whether that is enough."""

    frames: int
    regions: tuple[Region, ...]
    still_legible: bool
    """The last pass could still read text: the image must not leave."""


@dataclass(frozen=True)
class Cleaned:
    """An instance whose pixels were blanked; its attributes are still the patient's."""

    data: bytes = field(repr=False)
    """Part 10 bytes, Explicit VR Little Endian, Burned In Annotation NO."""
    regions: tuple[Region, ...]
    preview_png: bytes = field(repr=False)
    """The blanked picture with the regions outlined, for a person to judge."""


BY_OCR = "text, read by OCR"
BY_IDENTIFIER = "an identifier of the patient, read by OCR"


def find_regions(data: bytes, *, rectangles: bool = True, ocr: bool = True) -> Findings:
    """What to blank in the pixels of one instance: the same bytes give the same answer.

    Parameters
    ----------
    data
        A Part 10 instance.
    rectangles
        Take the rectangles that are known for the device.
    ocr
        Look for text in every frame. Without it nobody has looked, so nothing counts as legible.

    Raises
    ------
    OcrUnavailable
        tesseract is wanted and not installed.
    Unreadable, Unsupported
        The pixels cannot be decoded, or are of a kind that cannot be blanked; tesseract failed.
    """
    identifiers = identifiers_of(read_instance(data).elements)
    frames = decoded(data)
    regions = _device_regions(frames) if rectangles else []
    _blank(frames, regions)
    still_legible = False
    if ocr:
        found, still_legible = _text_regions(frames, identifiers)
        regions += found
    return Findings(len(frames.array), tuple(regions), still_legible)


def blanked(data: bytes, regions: Iterable[Region]) -> bytes:
    """The instance with these regions of every frame in its darkest tone, called clean.

    Pixels outside them keep their values; colour that was compressed is decoded to RGB.
    """
    frames = decoded(data)
    _blank(frames, regions)
    frames.dataset.BurnedInAnnotation = "NO"
    return encoded(frames)


def preview_png(data: bytes, regions: Sequence[Region], frame: int = 0) -> bytes:
    """One frame as it would leave, with the regions outlined and numbered from 1 in their order.

    IndexError if there is no such frame.
    """
    frames = decoded(data)
    if not 0 <= frame < len(frames.array):
        raise IndexError("no such frame")
    _blank(frames, regions)
    image = Image.fromarray(picture(frames, frame)).convert("RGB")
    draw = ImageDraw.Draw(image)
    width = max(1, max(image.size) // 500)
    for number, region in enumerate(regions, start=1):
        box = (region.left, region.top, region.right - 1, region.bottom - 1)
        draw.rectangle(box, outline=_OUTLINE, width=width)
        size = max(8, min(region.bottom - region.top - 4, max(image.size) // 40))
        draw.text(
            (region.left + 2 * width, region.top + width), str(number), _OUTLINE, font_size=size
        )
    buffer = BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def clean_pixels(data: bytes, *, rectangles: bool = True, ocr: bool = True) -> Cleaned:
    """Blank burned-in text where nobody will look before the image leaves.

    Raises
    ------
    BurnedInText
        Nothing was found, or text can still be read.
    OcrUnavailable, Unreadable, Unsupported
        As :func:`find_regions`.
    """
    findings = find_regions(data, rectangles=rectangles, ocr=ocr)
    if not findings.regions:
        raise BurnedInText("No text was found to blank: the pixels may still show the patient")
    if findings.still_legible:
        raise BurnedInText("Text can still be read in the pixels after they were cleaned")
    return Cleaned(
        blanked(data, findings.regions), findings.regions, preview_png(data, findings.regions)
    )


def deidentify_blanked(
    data: bytes, regions: Iterable[Region], policy: Policy, keys: PseudonymKeys
) -> DeidentifiedInstance:
    """De-identify an image with these regions blanked, and say so (code 113101).

    Its way back leads to the instance as it was. Raises what :func:`blanked` and
    :func:`anonymizer.deidentify.deidentify_instance` raise: kinds of objects that are drawn as a
    whole (Secondary Capture, ultrasound) stay held.
    """
    made = deidentify_instance(blanked(data, regions), policy.with_clean_pixels, keys)
    return replace(made, original=replace(made.original, header=read_instance(data).header))


def deidentify_with_clean_pixels(
    data: bytes, policy: Policy, keys: PseudonymKeys, *, rectangles: bool = True, ocr: bool = True
) -> tuple[DeidentifiedInstance, Cleaned]:
    """De-identify an image after its pixels were cleaned.

    Raises what :func:`clean_pixels` and :func:`deidentify_blanked` raise.
    """
    cleaned = clean_pixels(data, rectangles=rectangles, ocr=ocr)
    return deidentify_blanked(data, cleaned.regions, policy, keys), cleaned


# ---------------------------------------------------------------- what to blank


def _device_regions(frames: Frames) -> list[Region]:
    """The rectangles of deid's list whose conditions this header meets."""
    from deid.config import DeidRecipe
    from deid.dicom.pixels import has_burned_pixels

    # Read anew each time: deid writes what it finds in one image into its list.
    recipe = DeidRecipe(base=True, default_base="dicom")
    labels = {
        id(rule["coordinates"]): rule["name"].removeprefix("LABEL ")
        for rules in recipe.get_filters().values()
        for rule in rules
    }
    rows, columns = frames.array.shape[1:3]
    regions = []
    for result in has_burned_pixels(frames.dataset, deid=recipe)["results"]:
        if any(kept for kept, _ in result["coordinates"]):
            continue  # says what to keep; no image is blanked by what it does not name
        rule = f"rectangle of the device: {labels[id(result['coordinates'])]}"
        for _, coordinates in result["coordinates"]:
            for text in coordinates if isinstance(coordinates, list) else [coordinates]:
                left, top, right, bottom = (
                    (0, 0, columns, rows)
                    if str(text) == "all"
                    else (int(part) for part in str(text).split(","))
                )
                regions.append(Region(left, top, min(right, columns), min(bottom, rows), rule))
    # Some are for larger images of the same device.
    return [one for one in regions if one.left < one.right and one.top < one.bottom]


def _text_regions(frames: Frames, identifiers: Identifiers) -> tuple[list[Region], bool]:
    """Blank the text of every frame, pass by pass; True if text is still legible in the end."""
    if len(frames.array) > MAX_FRAMES:
        raise Unsupported(f"More than {MAX_FRAMES} frames to look for text in")
    regions = _merged(region for region, _ in _text(frames, identifiers))
    for _ in range(_MAX_PASSES):
        _blank(frames, regions)
        legible = [region for region, legible in _text(frames, identifiers) if legible]
        if not legible:
            return regions, False
        regions = _merged([*regions, *legible])
    return regions, True


def _text(frames: Frames, identifiers: Identifiers) -> list[tuple[Region, bool]]:
    """What may be text in any frame, and of each whether a person could surely read it."""
    rows = frames.array.shape[1]
    found = []
    for index in range(len(frames.array)):
        words = find_words(picture(frames, index))
        identifying = _identifying(words, identifiers)
        for word in words:
            if word in identifying:
                found.append((_region(word, frames, BY_IDENTIFIER), True))
            elif word.sure and _is_text(word) and word.bottom - word.top <= _TALLEST * rows:
                found.append((_region(word, frames, BY_OCR), word.confidence >= _LEGIBLE))
    return found


def _is_text(word: Word) -> bool:
    """Two letters or digits, or three in doubt: fewer are what OCR makes of a rib."""
    return sum(map(str.isalnum, word.text)) >= (2 if word.confidence >= _LEGIBLE else 3)


def _identifying(words: Iterable[Word], identifiers: Identifiers) -> set[Word]:
    """All words of each line in which an identifier of the patient stands, guesses too."""
    lines: dict[tuple[int, int, int], list[Word]] = {}
    for word in words:
        lines.setdefault(word.line, []).append(word)
    return {
        word
        for line in lines.values()
        if identifiers.occurs_in(" ".join(word.text for word in line))
        for word in line
    }


def _region(word: Word, frames: Frames, rule: str) -> Region:
    """The word's box with a margin: a third of its height above and below, its height beside it."""
    height = word.bottom - word.top
    margin = max(2, height // 3)
    rows, columns = frames.array.shape[1:3]
    return Region(
        max(0, word.left - height),
        max(0, word.top - margin),
        min(columns, word.right + height),
        min(rows, word.bottom + margin),
        rule,
    )


def _merged(regions: Iterable[Region]) -> list[Region]:
    """Fewer rectangles over the same text: those of one line that overlap become one."""
    done: list[Region] = []
    for region in regions:
        while (other := next((one for one in done if _one_line(one, region)), None)) is not None:
            done.remove(other)
            region = _union(other, region)
        done.append(region)
    return sorted(done, key=lambda one: (one.top, one.left))


def _one_line(one: Region, other: Region) -> bool:
    """Whether they overlap, and by at least half the height of the lower one."""
    rows = min(one.bottom, other.bottom) - max(one.top, other.top)
    columns = min(one.right, other.right) - max(one.left, other.left)
    return columns > 0 and 2 * rows >= min(one.bottom - one.top, other.bottom - other.top)


def _union(one: Region, other: Region) -> Region:
    return Region(
        min(one.left, other.left),
        min(one.top, other.top),
        max(one.right, other.right),
        max(one.bottom, other.bottom),
        BY_IDENTIFIER if BY_IDENTIFIER in (one.rule, other.rule) else BY_OCR,
    )


def _blank(frames: Frames, regions: Iterable[Region]) -> None:
    """Paint ``regions`` of every frame in its darkest tone."""
    tone = frames.darkest
    for region in regions:
        frames.array[:, region.top : region.bottom, region.left : region.right] = tone
