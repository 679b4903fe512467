"""The picture of a radiograph's result: the image as it is displayed, with what was found."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from node.errors import EmptyResult
from node.manifest import ModelManifest, Segment
from node.results import drawing
from node.results.drawing import HEADER, LEGEND_LINE, MARGIN
from node.results.measurements import share_in_words

_LARGEST = (1100, 900)  # width and height of the image
_NARROWEST = 1000  # of the whole picture: the header needs it
_ABOVE_LEGEND = 26


def radiograph_png(
    shades: NDArray[np.float32],
    labels: NDArray[np.uint8],
    segments: Sequence[Segment],
    manifest: ModelManifest,
    *,
    aspect: float,
    sides_known: bool,
) -> bytes:
    """The image, contoured, with a legend; as a PNG.

    Parameters
    ----------
    shades
        0 black to 1 white, shape (rows, columns), turned as displayed by convention.
    labels
        Same shape: 0, or the number of one of ``segments``.
    aspect
        Row spacing over column spacing.
    sides_known
        Whether to mark the patient's right and left.

    Raises
    ------
    EmptyResult
        No pixel is labelled.
    """
    if not labels.any():
        raise EmptyResult("No pixel is labelled, so there is nothing to show")
    rows, columns = shades.shape
    tile_width = min(_LARGEST[0], round(_LARGEST[1] * columns / (rows * aspect)))
    tile = drawing.plane(shades, labels, segments, aspect, tile_width)
    if sides_known:
        drawing.sides(ImageDraw.Draw(tile), tile, 22)
    width = max(_NARROWEST, tile.width + 2 * MARGIN)
    legend_top = HEADER + tile.height + _ABOVE_LEGEND
    height = legend_top + LEGEND_LINE * len(segments) + MARGIN // 2
    canvas = Image.new("RGB", (width, height), drawing.BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    drawing.header(draw, width, manifest)
    canvas.paste(tile, ((width - tile.width) // 2, HEADER))
    # A share of the image: what a pixel measures in the patient, a projection does not say.
    amounts = [(one, share_in_words(float((labels == one.number).mean()))) for one in segments]
    drawing.legend(draw, (MARGIN, legend_top), width - 2 * MARGIN, amounts)
    stream = BytesIO()
    canvas.save(stream, "PNG")
    return stream.getvalue()
