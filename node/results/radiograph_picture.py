"""The picture of a radiograph's result: the image as it is displayed, with what was found."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from node.errors import EmptyResult
from node.imaging.radiograph import Turn, normalised
from node.results import drawing
from node.results.drawing import HEADER, LEGEND_LINE, MARGIN
from node.sdk import Radiograph, RadiographManifest, Segment

_LARGEST = (1100, 900)  # width and height of the image
_NARROWEST = 1000  # of the whole picture: the header needs it
_ABOVE_LEGEND = 26


def radiograph_png(
    radiograph: Radiograph, labels: NDArray[np.uint8], manifest: RadiographManifest
) -> bytes:
    """The image turned as it is displayed by convention, contoured, with a legend; as a PNG.

    Sides are marked only where the image says which they are. ``labels`` has the shape (1, rows,
    columns) and the values of the label map.

    Raises
    ------
    EmptyResult
        No pixel is labelled.
    """
    if not labels.any():
        raise EmptyResult("No pixel is labelled, so there is nothing to show")
    numbered, segments = manifest.settled(labels[0])
    tile = _tile(radiograph, numbered, segments, manifest.preprocessing.percentiles)
    if radiograph.toward is not None:
        drawing.sides(ImageDraw.Draw(tile), tile, 22)
    width = max(_NARROWEST, tile.width + 2 * MARGIN)
    legend_top = HEADER + tile.height + _ABOVE_LEGEND
    height = legend_top + LEGEND_LINE * len(segments) + MARGIN // 2
    canvas = Image.new("RGB", (width, height), drawing.BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    drawing.header(draw, width, manifest)
    canvas.paste(tile, ((width - tile.width) // 2, HEADER))
    amounts = [(one, _area_in_words(numbered == one.number)) for one in segments]
    drawing.legend(draw, (MARGIN, legend_top), width - 2 * MARGIN, amounts)
    stream = BytesIO()
    canvas.save(stream, "PNG")
    return stream.getvalue()


def _tile(
    radiograph: Radiograph,
    labels: NDArray[np.uint8],
    segments: Sequence[Segment],
    percentiles: tuple[float, float],
) -> Image.Image:
    turn = Turn.of(radiograph.toward)
    shades = turn.apply(normalised(radiograph.array, radiograph.padding, percentiles))
    row_mm, column_mm = radiograph.pixel_spacing_mm or (1.0, 1.0)
    aspect = column_mm / row_mm if turn.swaps_axes else row_mm / column_mm
    rows, columns = shades.shape
    width = min(_LARGEST[0], round(_LARGEST[1] * columns / (rows * aspect)))
    return drawing.plane(shades, turn.apply(labels), segments, aspect, width)


def _area_in_words(found: NDArray[np.bool_]) -> str:
    """A share of the image: what a pixel measures in the patient, a projection does not say."""
    share = float(found.mean())
    return f"{share:.1%} of the image" if share else "not found"
