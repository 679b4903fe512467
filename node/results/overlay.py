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
from PIL import Image, ImageDraw
from scipy.optimize import linear_sum_assignment

from node.errors import EmptyResult
from node.manifest import CommandManifest, NetworkManifest, Segment
from node.results import drawing
from node.results.drawing import HEADER, LEGEND_LINE, MARGIN
from node.results.measurements import volume_in_words
from node.sdk import Volume

VolumeManifest = NetworkManifest | CommandManifest

_COLUMNS, _ROWS = 4, 3
_TILE_WIDTH = 264
_SIDE_WIDTH = (420, 760)  # of the coronal plane: as wide as fills the height, within these
_GAP = 10
_ABOVE_LEGEND = 26
_CONTEXT_MM = 32.0  # shown around what was found


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
    manifest: VolumeManifest,
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
        Black and white; by default the model's own.

    Raises
    ------
    EmptyResult
        No voxel is labelled.
    """
    if not labels.any():
        raise EmptyResult("No voxel is labelled, so there is nothing to show")
    anatomy = _along_patient_axes(volume, labels)
    window = window_hu or manifest.window_hu
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
        drawing.sides(draw, tile, 15)
        from_top_mm = position * self.anatomy.spacing_mm[0]
        drawing.write(draw, (8, tile.height - 8), f"{from_top_mm:.0f} mm", 13, "ls")
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
            draw.line([(0, height), (7, height)], drawing.QUIET)
            draw.line([(tile.width - 8, height), (tile.width - 1, height)], drawing.QUIET)
        drawing.sides(draw, tile, 18)
        return tile

    def _plane(
        self, image: NDArray[np.int16], labels: NDArray[np.uint8], aspect: float, width: int
    ) -> Image.Image:
        low, high = self.window_hu
        shades = (image.astype(np.float32) - low) / (high - low)
        return drawing.plane(shades, labels, self.segments, aspect, width)


def _height_beside(tiles: Sequence[Image.Image], legend: Sequence[tuple[Segment, float]]) -> int:
    """What the tiles' grid leaves for the coronal plane above the legend."""
    return _grid_height(tiles) - _ABOVE_LEGEND - LEGEND_LINE * len(legend)


def _grid_height(tiles: Sequence[Image.Image]) -> int:
    rows = -(-len(tiles) // _COLUMNS)
    return rows * (tiles[0].height + _GAP) - _GAP


def _compose(
    tiles: Sequence[Image.Image],
    coronal: Image.Image,
    legend: Sequence[tuple[Segment, float]],
    manifest: VolumeManifest,
) -> Image.Image:
    amounts = [(segment, volume_in_words(volume_ml)) for segment, volume_ml in legend]
    grid_width = _COLUMNS * (_TILE_WIDTH + _GAP)
    legend_top = HEADER + coronal.height + _ABOVE_LEGEND
    width = 2 * MARGIN + grid_width + _GAP + coronal.width
    lowest = max(HEADER + _grid_height(tiles), legend_top + LEGEND_LINE * len(legend))
    height = lowest + MARGIN
    canvas = Image.new("RGB", (width, height), drawing.BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    drawing.header(draw, width, manifest)
    for place, tile in enumerate(tiles):
        row, column = divmod(place, _COLUMNS)
        left = MARGIN + column * (_TILE_WIDTH + _GAP)
        canvas.paste(tile, (left, HEADER + row * (tile.height + _GAP)))
    side = MARGIN + grid_width + _GAP
    canvas.paste(coronal, (side, HEADER))
    drawing.legend(draw, (side, legend_top), coronal.width, amounts)
    return canvas
