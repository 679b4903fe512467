"""Do labels lie on the grid of the series, perhaps with axes in another order or direction?

A grid is an affine, homogeneous index to patient LPS in millimetres, and a shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

TOLERANCE_VOXELS = 0.25
"""How far apart voxels may lie that are called the same: far from half, where a neighbour begins,
and more than the tenth of a millimetre to which scanners round positions."""

FloatArray = npt.NDArray[np.float64]
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Grid:
    """Where the voxels of an array lie."""

    affine: FloatArray
    shape: tuple[int, ...]

    def to(self, other: Grid) -> FloatArray:
        """4x4, index here to (fractional) index there."""
        return np.linalg.solve(other.affine, self.affine).astype(np.float64)

    def corners(self) -> FloatArray:
        """Homogeneous indices of the outermost voxels, shape (8, 4)."""
        ends = [(0, size - 1) for size in self.shape]
        return np.array([(*corner, 1) for corner in product(*ends)], dtype=np.float64)


def on_same_grid(labels: Array, own: Grid, wanted: Grid) -> Array | None:
    """``labels`` turned to the axes of ``wanted``, or None where the voxels are not the same.

    No voxel is interpolated: axes are permuted and flipped, which is all that writers of NIfTI and
    DICOM differ in when they keep a grid.
    """
    matrix = wanted.to(own)
    exact = np.rint(matrix)
    corners = wanted.corners()
    if np.abs(corners @ (matrix - exact).T).max() > TOLERANCE_VOXELS:
        return None
    turn = exact[:3, :3]
    axes = np.abs(turn).argmax(axis=0)
    if sorted(axes) != [0, 1, 2] or np.abs(turn).sum() != len(axes):
        return None
    turned = labels.transpose(axes)
    reversed_axes = tuple(axis for axis in range(3) if turn[axes[axis], axis] < 0)
    reached = corners @ exact.T
    inside = (reached[:, :3].min(axis=0) == 0) & (reached[:, :3].max(axis=0) + 1 == own.shape)
    return np.flip(turned, reversed_axes) if inside.all() and turned.shape == wanted.shape else None


def resampled(labels: Array, own: Grid, wanted: Grid) -> Array:
    """The label nearest to each voxel of ``wanted``; 0 beyond the grid of ``labels``."""
    matrix = wanted.to(own)
    found: Array = ndimage.affine_transform(
        labels, matrix[:3, :3], matrix[:3, 3], output_shape=wanted.shape, order=0, cval=0
    )
    return found


def lies_within(labels: Array, own: Grid, wanted: Grid) -> bool:
    """Whether every labelled voxel lies in ``wanted``, or within one voxel of its edge.

    Labels that do not are on the wrong affine: a crop is smaller than the series, never elsewhere.
    """
    labelled = np.argwhere(labels)
    if not len(labelled):
        return True
    matrix = own.to(wanted)
    at = labelled @ matrix[:3, :3].T + matrix[:3, 3]
    margin = np.maximum(np.abs(matrix[:3, :3]).sum(axis=1), 1)
    last = np.array(wanted.shape) - 1
    return bool((at.min(axis=0) >= -margin).all() and (at.max(axis=0) <= last + margin).all())
