"""Whether what a viewer painted lies where the truth says, by segment."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from tests.viewer.ohif import Photograph

#: Change of a colour channel from which a pixel counts as painted.
VISIBLE = 12
WARM, COLD = 1, 2


def dice_by_segment(
    photograph: Photograph, source: Sequence[Dataset], labels: npt.NDArray[np.uint8]
) -> dict[int, float]:
    """Dice of painted pixels and truth for each segment that either has on this slice.

    Parameters
    ----------
    source
        ``source[i]`` is the slice of ``labels[i]``, shape (slices, rows, columns).
    labels
        1 for the segment that is painted in a warm colour, 2 for the one in a cold colour.
    """
    seen = painted_labels(photograph)
    truth = labels_at(photograph.points, source, labels)
    return {
        number: float(
            2
            * np.sum((seen == number) & (truth == number))
            / (np.sum(seen == number) + np.sum(truth == number))
        )
        for number in (WARM, COLD)
        if (seen == number).any() or (truth == number).any()
    }


def painted_labels(photograph: Photograph) -> npt.NDArray[np.uint8]:
    """What the overlay adds to the picture, told apart by colour: more red or more blue."""
    added = photograph.with_overlay.astype(int) - photograph.without_overlay
    warm = added[..., 0] > added[..., 2]
    painted = np.abs(added).max(axis=-1) > VISIBLE
    return np.where(painted, np.where(warm, WARM, COLD), 0).astype(np.uint8)


def labels_at(
    points: npt.NDArray[np.float64], source: Sequence[Dataset], labels: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint8]:
    """The label of the voxel at each LPS point (..., 3), mm; 0 outside (PS3.3 C.7.6.2.1.1)."""
    cosines = np.array(source[0].ImageOrientationPatient, float)
    along_row, along_column = cosines[:3], cosines[3:]
    normal = np.cross(along_row, along_column)
    positions = np.array([header.ImagePositionPatient for header in source], float)
    heights = positions @ normal
    middle = points.reshape(-1, 3)[0] @ normal
    index = int(np.abs(heights - middle).argmin())
    offsets = points - positions[index]
    down_mm, across_mm = (float(value) for value in source[0].PixelSpacing)
    rows = np.rint(offsets @ along_column / down_mm).astype(int)
    columns = np.rint(offsets @ along_row / across_mm).astype(int)
    height, width = labels.shape[1:]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    inside &= np.abs(offsets @ normal) < 0.01
    found = np.zeros(points.shape[:-1], np.uint8)
    found[inside] = labels[index][rows[inside], columns[inside]]
    return found
