"""The picture of a result: what was found, on the slices it was found on.

For a person who looks once: the console shows it, and so does the README. It holds no text of the
patient, and it is no DICOM object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from node.errors import EmptyResult
from node.results.report import NOTICE
from node.sdk import ModelManifest, Segment, Volume

_COLUMNS, _ROWS = 4, 3
_TILE_WIDTH = 264
_SIDE_WIDTH = (420, 760)  # of the coronal plane: as wide as fills the height, within these
_GAP = 10
_MARGIN = 28
_HEADER = 74
_LEGEND_LINE = 46
_ABOVE_LEGEND = 26
_CONTEXT_MM = 32.0  # shown around what was found
_OVERSAMPLING = 2  # drawn larger and reduced: smooth contours without a vector library
_CONTOUR_PIXELS = 1.5
_FILL_OPACITY = 0.16  # anatomy stays visible; R18 of the viewer tests allows 0.25
_CONTOUR_OPACITY = 0.95

_Colour = tuple[int, int, int]
_BACKGROUND: _Colour = (11, 14, 20)
_PANEL: _Colour = (0, 0, 0)
_TEXT: _Colour = (230, 234, 240)
_QUIET: _Colour = (139, 148, 160)
_WARNING: _Colour = (255, 196, 87)


@dataclass(frozen=True)
class _Anatomy:
    """Image and labels along (head to feet, front to back, right to left), and these axes'
    spacing: as a radiologist looks at them, the patient's right on the left."""

    image: NDArray[np.int16]
    labels: NDArray[np.uint8]
    spacing_mm: tuple[float, float, float]


def montage_png(
    volume: Volume,
    labels: NDArray[np.uint8],
    manifest: ModelManifest,
    *,
    window_hu: tuple[float, float] | None = None,
) -> bytes:
    """Twelve axial slices and one coronal, contoured, with a legend of volumes; as a PNG.

    Parameters
    ----------
    volume
        In any orientation; it is shown along the patient's axes nearest to its own.
    labels
        Shape of ``volume.array``: 0, or the number of a segment of the manifest.
    window_hu
        Black and white; by default what the model's own preprocessing looks at.

    Raises
    ------
    EmptyResult
        No voxel is labelled.
    """
    if not labels.any():
        raise EmptyResult("No voxel is labelled, so there is nothing to show")
    anatomy = _along_patient_axes(volume, labels)
    window = window_hu or manifest.preprocessing.window_hu
    shown = _Painter(_cropped(anatomy), manifest.segments, window)
    positions = _spread(shown.anatomy.labels, _COLUMNS * _ROWS)
    tiles = [shown.axial(position, _TILE_WIDTH) for position in positions]
    legend = segment_volumes_ml(labels, volume.voxel_ml, manifest.segments)
    coronal = shown.coronal(_height_beside(tiles, legend), marked=positions)
    canvas = _compose(tiles, coronal, legend, manifest)
    stream = BytesIO()
    canvas.save(stream, "PNG")
    return stream.getvalue()


def _along_patient_axes(volume: Volume, labels: NDArray[np.uint8]) -> _Anatomy:
    """Permute and flip to the patient's axes; no interpolation."""
    direction = volume.affine[:3, :3] / np.asarray(volume.spacing_mm)
    wanted = np.array([[0, 0, -1], [0, 1, 0], [1, 0, 0]])  # to the feet, back and left, in LPS
    agreement = wanted @ direction  # (wanted axis, array axis)
    _, order = linear_sum_assignment(-np.abs(agreement))
    flips = tuple(axis for axis, source in enumerate(order) if agreement[axis, source] < 0)

    def turned(array: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(np.flip(array.transpose(order), flips))

    first, second, third = (volume.spacing_mm[source] for source in order)
    return _Anatomy(turned(volume.array), turned(labels), (first, second, third))


def _cropped(anatomy: _Anatomy) -> _Anatomy:
    """What was found and some context: in the plane, and in full length along the body."""
    window = [slice(None)]
    for axis in (1, 2):
        others = tuple(other for other in range(3) if other != axis)
        found = np.flatnonzero(anatomy.labels.any(axis=others))
        context = round(_CONTEXT_MM / anatomy.spacing_mm[axis])
        window.append(slice(max(0, int(found[0]) - context), int(found[-1]) + context + 1))
    box = tuple(window)
    return _Anatomy(anatomy.image[box], anatomy.labels[box], anatomy.spacing_mm)


def _spread(labels: NDArray[np.uint8], count: int) -> list[int]:
    """Up to ``count`` slices at equal distances over the range in which something was found."""
    found = np.flatnonzero(labels.any(axis=(1, 2)))
    first, last = int(found[0]), int(found[-1])
    inset = 0.5 * (last - first) / count  # the very ends show next to nothing
    return sorted({round(value) for value in np.linspace(first + inset, last - inset, count)})


def segment_volumes_ml(
    labels: NDArray[np.uint8], voxel_ml: float, segments: Sequence[Segment]
) -> list[tuple[Segment, float]]:
    """Each segment with its volume, which is 0 when it was not found."""
    # One comparison a segment: np.bincount would copy the label map to 64-bit integers first.
    return [
        (segment, float(np.count_nonzero(labels == segment.number)) * voxel_ml)
        for segment in segments
    ]


@dataclass(frozen=True)
class _Painter:
    """Planes of one anatomy, windowed, with the segments drawn on them."""

    anatomy: _Anatomy
    segments: Sequence[Segment]
    window_hu: tuple[float, float]

    def axial(self, position: int, width: int) -> Image.Image:
        _, rows_mm, columns_mm = self.anatomy.spacing_mm
        tile = self._plane(
            self.anatomy.image[position],
            self.anatomy.labels[position],
            rows_mm / columns_mm,
            width,
        )
        draw = ImageDraw.Draw(tile)
        _sides(draw, tile, 15)
        from_top_mm = position * self.anatomy.spacing_mm[0]
        _write(draw, (8, tile.height - 8), f"{from_top_mm:.0f} mm", 13, "ls")
        return tile

    def coronal(self, height: int, *, marked: Sequence[int]) -> Image.Image:
        """The coronal plane with most of the findings; ticks where the axial slices lie."""
        slices_mm, _, columns_mm = self.anatomy.spacing_mm
        slices, _, columns = self.anatomy.image.shape
        fitting = round(height * columns * columns_mm / (slices * slices_mm))
        width = min(max(fitting, _SIDE_WIDTH[0]), _SIDE_WIDTH[1])
        depth = int(np.argmax(np.count_nonzero(self.anatomy.labels, axis=(0, 2))))
        tile = self._plane(
            self.anatomy.image[:, depth],
            self.anatomy.labels[:, depth],
            slices_mm / columns_mm,
            width,
        )
        draw = ImageDraw.Draw(tile)
        step = tile.height / len(self.anatomy.image)
        for position in marked:
            height = round((position + 0.5) * step)
            draw.line([(0, height), (7, height)], _QUIET)
            draw.line([(tile.width - 8, height), (tile.width - 1, height)], _QUIET)
        _sides(draw, tile, 18)
        return tile

    def _plane(
        self, image: NDArray[np.int16], labels: NDArray[np.uint8], aspect: float, width: int
    ) -> Image.Image:
        """One plane, ``aspect`` being the row spacing over the column spacing."""
        height = round(width * image.shape[0] * aspect / image.shape[1])
        large = (width * _OVERSAMPLING, height * _OVERSAMPLING)
        low, high = self.window_hu
        grey = np.clip((image.astype(np.float32) - low) / (high - low), 0, 1) * 255
        pixels = np.asarray(
            Image.fromarray(grey.astype(np.uint8)).resize(large, Image.Resampling.BICUBIC),
            np.float32,
        )
        picture = np.repeat(pixels[..., np.newaxis], 3, axis=2)
        for segment in self.segments:
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
    """The inner edge, so that contours of neighbours lie side by side."""
    inside_by: NDArray[np.float64] = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    return mask & (inside_by <= _CONTOUR_PIXELS * _OVERSAMPLING)


def _blend(
    picture: NDArray[np.float32], where: NDArray[np.bool_], colour: _Colour, opacity: float
) -> None:
    picture[where] = (1 - opacity) * picture[where] + opacity * np.asarray(colour, np.float32)


def _sides(draw: ImageDraw.ImageDraw, tile: Image.Image, size: int) -> None:
    """The patient's right and left: the right is on the left, as everybody reads."""
    _write(draw, (8, tile.height // 2), "R", size, "lm")
    _write(draw, (tile.width - 8, tile.height // 2), "L", size, "rm")


def _write(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, anchor: str
) -> None:
    """On an image, so outlined to be read on white and on black."""
    draw.text(at, text, _TEXT, _font(size), anchor=anchor, stroke_width=2, stroke_fill=_BACKGROUND)


def _height_beside(tiles: Sequence[Image.Image], legend: Sequence[tuple[Segment, float]]) -> int:
    """What the tiles' grid leaves for the coronal plane above the legend."""
    return _grid_height(tiles) - _ABOVE_LEGEND - _LEGEND_LINE * len(legend)


def _grid_height(tiles: Sequence[Image.Image]) -> int:
    rows = -(-len(tiles) // _COLUMNS)
    return rows * (tiles[0].height + _GAP) - _GAP


def _compose(
    tiles: Sequence[Image.Image],
    coronal: Image.Image,
    legend: Sequence[tuple[Segment, float]],
    manifest: ModelManifest,
) -> Image.Image:
    grid_width = _COLUMNS * (_TILE_WIDTH + _GAP)
    legend_top = _HEADER + coronal.height + _ABOVE_LEGEND
    width = 2 * _MARGIN + grid_width + _GAP + coronal.width
    lowest = max(_HEADER + _grid_height(tiles), legend_top + _LEGEND_LINE * len(legend))
    height = lowest + _MARGIN
    canvas = Image.new("RGB", (width, height), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    _header(draw, width, manifest)
    for place, tile in enumerate(tiles):
        row, column = divmod(place, _COLUMNS)
        left = _MARGIN + column * (_TILE_WIDTH + _GAP)
        canvas.paste(tile, (left, _HEADER + row * (tile.height + _GAP)))
    side = _MARGIN + grid_width + _GAP
    canvas.paste(coronal, (side, _HEADER))
    _legend(draw, (side, legend_top), coronal.width, legend)
    return canvas


def _header(draw: ImageDraw.ImageDraw, width: int, manifest: ModelManifest) -> None:
    middle = _HEADER // 2
    title = f"{manifest.name} {manifest.version}"
    draw.text((_MARGIN, middle), title, _TEXT, _font(26), anchor="lm")
    after = _MARGIN + draw.textlength(title, _font(26)) + 18
    draw.text((after, middle + 3), manifest.description, _QUIET, _font(18), anchor="lm")
    draw.text((width - _MARGIN, middle + 3), NOTICE, _WARNING, _font(18), anchor="rm")


def _legend(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    width: int,
    legend: Sequence[tuple[Segment, float]],
) -> None:
    left, top = corner
    for place, (segment, volume_ml) in enumerate(legend):
        middle = top + _LEGEND_LINE * place + 16
        draw.rounded_rectangle((left, middle - 11, left + 22, middle + 11), 5, fill=segment.rgb)
        draw.text((left + 36, middle), segment.label, _TEXT, _font(22), anchor="lm")
        amount = f"{volume_ml:,.0f} ml" if volume_ml >= 10 else f"{volume_ml:.1f} ml"
        amount = amount if volume_ml else "not found"
        draw.text((left + width, middle), amount, _TEXT, _font(22), anchor="rm")


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own, so that the picture is the same on every machine."""
    return ImageFont.load_default(size)
