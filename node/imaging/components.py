"""3-D components of a label map."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Box = tuple[slice, slice, slice]


def keep_large_components(
    labels: npt.NDArray[np.uint8],
    voxel_ml: float,
    min_component_ml: float,
    min_component_share: float,
    min_segment_ml: float,
) -> npt.NDArray[np.uint8]:
    """A copy of a label map without the specks.

    Each segment keeps the components (touching by faces) of at least ``min_component_ml`` and
    ``min_component_share`` of its largest one. A speck that is enclosed in another segment's voxels
    becomes part of it. A segment that keeps less than ``min_segment_ml`` is removed.

    ``labels`` is uint8, shape (slices, rows, columns), 0 background.
    """
    result = labels.copy()
    for number, extent in enumerate(ndimage.find_objects(labels), start=1):
        if extent is None:
            continue
        # One voxel of margin, so that a component's whole rim is inside.
        box = _grown(extent, labels.shape)
        regions, count = ndimage.label(labels[box] == number)
        volumes_ml = np.bincount(regions[regions > 0], minlength=count + 1)[1:] * voxel_ml
        smallest_ml = max(min_component_ml, min_component_share * float(volumes_ml.max()))
        kept_ml = float(volumes_ml[volumes_ml >= smallest_ml].sum())
        if kept_ml < min_segment_ml:
            result[box][regions > 0] = 0
            continue
        for region, place in enumerate(ndimage.find_objects(regions), start=1):
            if volumes_ml[region - 1] < smallest_ml:
                _absorb(result[box], regions, region, place)
    return result


def _absorb(
    result: npt.NDArray[np.uint8],
    regions: npt.NDArray[np.int32],
    region: int,
    box: Box,
) -> None:
    """Give one component the label of most of its neighbouring voxels."""
    around = _grown(box, regions.shape)
    mask = regions[around] == region
    rim = ndimage.binary_dilation(mask) & ~mask
    neighbours = np.bincount(result[around][rim], minlength=1)
    result[around][mask] = int(neighbours.argmax())


def _grown(box: Box, shape: tuple[int, ...]) -> Box:
    first, second, third = (
        slice(max(side.start - 1, 0), min(side.stop + 1, length))
        for side, length in zip(box, shape, strict=True)
    )
    return first, second, third
