"""Find text in a picture with tesseract, a program of its own (Debian: tesseract-ocr)."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from io import BytesIO, StringIO
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from anonymizer.errors import OcrUnavailable, Unreadable

# Text that a machine drew is small: a scanner's font is some 12 pixels high, tesseract wants 30.
_ENLARGED_TO = 4000
# White around the picture, in pixels: tesseract overlooks text that touches the edge.
_BORDER = 24
# Drawn text has the lightest or the darkest tone there is; anatomy hardly ever has.
_LIGHT, _DARK = 250, 5
# Percent. Of a picture with anatomy only what is surely text; of extreme tones whatever may be.
_LEAST_CONFIDENCE = 60.0
_LEAST_CONFIDENCE_EXTREME = 15.0
_TIMEOUT_S = 120


@dataclass(frozen=True)
class Word:
    """One word and its box in pixels of the picture; ``repr`` does not show the word."""

    text: str = field(repr=False)
    left: int
    top: int
    right: int
    bottom: int
    line: tuple[int, int, int]
    """Block, paragraph and line: words of one line belong together."""
    confidence: float
    """What tesseract gives it, percent."""
    sure: bool
    """Whether that is enough to call it text in this form of the picture; else it is a guess."""


def tesseract_path() -> str | None:
    """Where tesseract is installed, or None."""
    return shutil.which("tesseract")


def find_words(picture: np.ndarray[Any, np.dtype[np.uint8]]) -> list[Word]:
    """Words in ``picture``, shape (rows, columns) or (rows, columns, 3), 8 bits per sample.

    The picture is read in four forms: as it is, inverted, and only its lightest and its darkest
    tones, black on white. Guesses are among the words: in them a known name can still be found.

    Raises
    ------
    OcrUnavailable
        tesseract is not installed.
    Unreadable
        tesseract gave up on the picture, or took too long.
    """
    image = Image.fromarray(picture).convert("L")
    scale = max(1, min(3, _ENLARGED_TO // max(image.size)))
    forms = (
        (image, _LEAST_CONFIDENCE),
        (ImageOps.invert(image), _LEAST_CONFIDENCE),
        (image.point(lambda tone: 0 if tone >= _LIGHT else 255), _LEAST_CONFIDENCE_EXTREME),
        (image.point(lambda tone: 0 if tone <= _DARK else 255), _LEAST_CONFIDENCE_EXTREME),
    )
    words = []
    for number, (form, confidence) in enumerate(forms):
        bordered = ImageOps.expand(form, _BORDER, fill=255)
        size = (bordered.width * scale, bordered.height * scale)
        enlarged = bordered.resize(size, Image.Resampling.LANCZOS)
        words += _read(enlarged, scale, number, confidence)
    return [word for word in words if word.right > 0 and word.bottom > 0]


def _read(image: Image.Image, scale: int, number: int, least_confidence: float) -> list[Word]:
    program = tesseract_path()
    if program is None:
        raise OcrUnavailable("tesseract is not installed, so no text can be found in pixels")
    buffer = BytesIO()
    image.save(buffer, "PNG")
    try:
        # Through pipes: the picture shows a patient and is written nowhere. Mode 11: sparse text.
        done = subprocess.run(
            [program, "stdin", "stdout", "--psm", "11", "--dpi", "150", "tsv"],
            input=buffer.getvalue(),
            capture_output=True,
            check=True,
            timeout=_TIMEOUT_S,
            env=_environment(),
        )
    except (subprocess.SubprocessError, OSError):
        raise Unreadable("tesseract could not read the picture") from None
    try:
        return _words(done.stdout.decode("utf-8"), scale, number, least_confidence)
    except (ValueError, KeyError, TypeError):
        raise Unreadable("tesseract answered with something other than its table") from None


def _environment() -> dict[str, str]:
    """What tesseract needs of ours; the keys may stand beside it."""
    needed = ("PATH", "LANG", "TESSDATA_PREFIX")
    return {name: os.environ[name] for name in needed if name in os.environ} | {
        "OMP_THREAD_LIMIT": "1"
    }


def _words(answer: str, scale: int, number: int, least_confidence: float) -> list[Word]:
    """The words of tesseract's table, which has at least a line for the page."""
    lines = list(csv.DictReader(StringIO(answer), delimiter="\t", quoting=csv.QUOTE_NONE))
    if not lines:
        raise ValueError("no table")
    words = []
    for line in lines:
        text = line["text"].strip()
        if not text:
            continue
        left, top, width, height = (int(line[name]) for name in ("left", "top", "width", "height"))
        confidence = float(line["conf"])
        words.append(
            Word(
                text=text,
                left=left // scale - _BORDER,
                top=top // scale - _BORDER,
                right=-(-(left + width) // scale) - _BORDER,
                bottom=-(-(top + height) // scale) - _BORDER,
                line=(
                    number * 100_000 + int(line["block_num"]),
                    int(line["par_num"]),
                    int(line["line_num"]),
                ),
                confidence=confidence,
                sure=confidence >= least_confidence,
            )
        )
    return words
