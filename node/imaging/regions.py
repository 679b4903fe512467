"""2-D regions of a label map."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage


def keep_large_regions(
    labels: npt.NDArray[np.uint8],
    *,
    min_region_share: float,
    min_segment_share: float,
    min_total_share: float,
) -> npt.NDArray[np.uint8]:
    """A copy of a label map without specks and holes.

    Each segment keeps the regions (touching by edges) of at least ``min_region_share`` of its
    largest one, and holes in them are filled. A segment of less than ``min_segment_share`` of the
    image's area is removed; where all together are less than ``min_total_share``, all are.

    ``labels`` is uint8, shape (rows, columns), 0 background.
    """
    result = np.zeros_like(labels)
    boxes = ndimage.find_objects(labels)
    for number, box in enumerate(boxes, start=1):
        if box is None:
            continue
        regions, _ = ndimage.label(labels[box] == number)
        areas = np.bincount(regions.ravel())
        areas[0] = 0
        large = np.flatnonzero(areas >= max(1, min_region_share * areas.max()))
        if areas[large].sum() >= min_segment_share * labels.size:
            result[box][np.isin(regions, large)] = number
    for number, box in enumerate(boxes, start=1):
        if box is not None:
            # What lies in a hole and is a segment of its own stays that.
            inside = ndimage.binary_fill_holes(result[box] == number)
            result[box][inside & (result[box] == 0)] = number
    if np.count_nonzero(result) < min_total_share * labels.size:
        return np.zeros_like(labels)
    return result
