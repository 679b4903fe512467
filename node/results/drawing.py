"""What pictures of results share: an image with its segments drawn on it, header and legend.

No text of the patient is ever drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from node.manifest import ModelManifest, Segment
from node.results.report import NOTICE

MARGIN = 28
HEADER = 74
LEGEND_LINE = 46

Colour = tuple[int, int, int]
BACKGROUND: Colour = (11, 14, 20)
TEXT: Colour = (230, 234, 240)
QUIET: Colour = (139, 148, 160)
WARNING: Colour = (255, 196, 87)

_OVERSAMPLING = 2  # drawn larger and reduced: smooth contours without a vector library
_CONTOUR_PIXELS = 3  # of the larger drawing
_FILL_OPACITY = 0.16  # anatomy stays visible: a fifth is the most that hides none of it
_CONTOUR_OPACITY = 0.95


def plane(
    shades: NDArray[np.float32],
    labels: NDArray[np.uint8],
    segments: Sequence[Segment],
    aspect: float,
    width: int,
) -> Image.Image:
    """One plane with the segments on it, ``width`` pixels wide.

    ``shades`` (rows, columns) are 0 for black to 1 for white, clipped here; ``aspect`` is the row
    spacing over the column spacing.
    """
    height = round(width * shades.shape[0] * aspect / shades.shape[1])
    large = (width * _OVERSAMPLING, height * _OVERSAMPLING)
    grey = (np.clip(shades, 0, 1) * 255).astype(np.uint8)
    pixels = np.asarray(Image.fromarray(grey).resize(large, Image.Resampling.BICUBIC), np.float32)
    picture = np.repeat(pixels[..., np.newaxis], 3, axis=2)
    for segment in segments:
        mask = _enlarged(labels == segment.number, large)
        if mask.any():
            _blend(picture, mask, segment.rgb, _FILL_OPACITY)
            _blend(picture, _contour(mask), segment.rgb, _CONTOUR_OPACITY)
    drawn = Image.fromarray(np.round(picture).astype(np.uint8))
    return drawn.resize((width, height), Image.Resampling.LANCZOS)


def _enlarged(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask at screen size with smooth edges instead of the voxels' steps."""
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC)) > 127


def _contour(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The inner edge, so that contours of neighbours lie side by side.

    Eroded by a cross, a square, a cross: next to a disk, and by far the cheapest.
    """
    inner = np.pad(mask, _CONTOUR_PIXELS)
    for step in range(_CONTOUR_PIXELS):
        along_rows = inner[:, :-2] & inner[:, 1:-1] & inner[:, 2:]
        columns = along_rows if step % 2 else inner[:, 1:-1]
        inner = along_rows[1:-1] & columns[:-2] & columns[2:]
    return mask & ~inner


def _blend(
    picture: NDArray[np.float32], where: NDArray[np.bool_], colour: Colour, opacity: float
) -> None:
    picture[where] = (1 - opacity) * picture[where] + opacity * np.asarray(colour, np.float32)


def sides(draw: ImageDraw.ImageDraw, tile: Image.Image, size: int) -> None:
    """The patient's right and left: the right is on the left, as everybody reads."""
    write(draw, (8, tile.height // 2), "R", size, "lm")
    write(draw, (tile.width - 8, tile.height // 2), "L", size, "rm")


def write(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, anchor: str
) -> None:
    """On an image, so outlined to be read on white and on black."""
    draw.text(at, text, TEXT, font(size), anchor=anchor, stroke_width=2, stroke_fill=BACKGROUND)


def header(draw: ImageDraw.ImageDraw, width: int, manifest: ModelManifest) -> None:
    """The model's name and description, and what the result is not."""
    middle = HEADER // 2
    title = f"{manifest.name} {manifest.version}"
    draw.text((MARGIN, middle), title, TEXT, font(26), anchor="lm")
    after = MARGIN + draw.textlength(title, font(26)) + 18
    draw.text((after, middle + 3), manifest.description, QUIET, font(18), anchor="lm")
    draw.text((width - MARGIN, middle + 3), NOTICE, WARNING, font(18), anchor="rm")


def legend(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    width: int,
    amounts: Sequence[tuple[Segment, str]],
) -> None:
    """One line for each segment: colour, label and how much was found, in words."""
    left, top = corner
    for place, (segment, amount) in enumerate(amounts):
        middle = top + LEGEND_LINE * place + 16
        draw.rounded_rectangle((left, middle - 11, left + 22, middle + 11), 5, fill=segment.rgb)
        draw.text((left + 36, middle), segment.label, TEXT, font(22), anchor="lm")
        draw.text((left + width, middle), amount, TEXT, font(22), anchor="rm")


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own, so that the picture is the same on every machine."""
    return ImageFont.load_default(size)
