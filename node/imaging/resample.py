"""From the source grid to the grid that a network sees, and back.

The network always sees the patient the same way round, whatever the scanner's orientation: axes
(slice, row, column) point to the patient's head, back and left (LPS +z, +y, +x). In-plane it sees
a square of fixed size and spacing, centred on the body.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from scipy import ndimage, sparse

from node.errors import GeometryError

Scalar = TypeVar("Scalar", bound=np.generic)

AXIS_ANGLE_COSINE = 0.9
"""How close to a patient axis an image axis must lie: within 26 degrees."""


@dataclass(frozen=True)
class Orientation:
    """How to turn a volume's array head-up, back-down, left-right, and back again.

    ``axes[i]`` is the source axis that runs along patient (z, y, x)[i]; ``flips[i]`` tells
    whether it runs against it.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    def apply(self, array: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """View of ``array`` with axes along patient (z, y, x)."""
        turned = array.transpose(self.axes)
        return turned[self._reversed()]

    def undo(self, array: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """Inverse of :meth:`apply`."""
        back = (self.axes.index(0), self.axes.index(1), self.axes.index(2))
        return array[self._reversed()].transpose(back)

    def _reversed(self) -> tuple[slice, slice, slice]:
        first, second, third = (slice(None, None, -1 if flip else 1) for flip in self.flips)
        return first, second, third


def patient_orientation(affine: npt.NDArray[np.float64]) -> Orientation:
    """Read from the affine (index (slice, row, column) to LPS mm) how the patient lies in it.

    Raises
    ------
    GeometryError
        An image axis lies more than 26 degrees off every patient axis.
    """
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    axes: list[int] = []
    flips: list[bool] = []
    for patient_axis in (2, 1, 0):
        along = directions[patient_axis]
        axis = int(np.argmax(np.abs(along)))
        if abs(along[axis]) < AXIS_ANGLE_COSINE:
            raise GeometryError(
                "The slices lie oblique to the patient by more than 26 degrees",
                remedy="Send an axial reconstruction.",
            )
        axes.append(axis)
        flips.append(bool(along[axis] < 0))
    return Orientation((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]))


@dataclass(frozen=True)
class PlaneGrid:
    """A square in-plane grid: ``size`` points ``spacing_mm`` apart, laid over the source plane.

    ``source_shape`` and ``source_spacing_mm`` are (row, column); ``center`` is the source index
    (row, column), fractional, that falls on the middle of the square.
    """

    size: int
    spacing_mm: float
    source_shape: tuple[int, int]
    source_spacing_mm: tuple[float, float]
    center: tuple[float, float]

    def from_source(self, planes: npt.NDArray[Any], outside: float) -> npt.NDArray[np.float32]:
        """Sample source planes (..., rows, columns) as (..., size, size).

        ``outside`` is the value beyond the source's edge. Where the grid is coarser than the
        source, source pixels are averaged, so that noise does not alias.
        """
        matrices = []
        for axis in (0, 1):
            ratio = self.spacing_mm / self.source_spacing_mm[axis]
            first = self.center[axis] - ratio * (self.size - 1) / 2
            matrices.append(_linear_weights(self.size, self.source_shape[axis], first, ratio))
        return _sample(planes, matrices[0], matrices[1], outside)

    def to_source(self, planes: npt.NDArray[Any], outside: float) -> npt.NDArray[np.float32]:
        """Sample planes (..., size, size) of this grid back as (..., rows, columns)."""
        matrices = []
        for axis in (0, 1):
            ratio = self.source_spacing_mm[axis] / self.spacing_mm
            first = (self.size - 1) / 2 - ratio * self.center[axis]
            matrices.append(_linear_weights(self.source_shape[axis], self.size, first, ratio))
        return _sample(planes, matrices[0], matrices[1], outside)


@lru_cache(maxsize=16)  # both axes, there and back, of a few grids
def _linear_weights(outputs: int, inputs: int, first: float, ratio: float) -> sparse.csr_array:
    """Linear interpolation along one axis as a sparse matrix (outputs, inputs).

    Output i lies at input coordinate ``first + ratio * i``. The kernel is a triangle as wide as
    the coarser of the two grids. A row's weights sum to less than one where the kernel reaches
    beyond the inputs.
    """
    reach = max(1.0, ratio)
    at = first + ratio * np.arange(outputs)
    margin = int(np.ceil(reach))
    columns = np.arange(-margin, inputs + margin)
    # Outputs far outside would see an empty kernel: their share of the inputs is nil anyway.
    at = np.clip(at, -margin, inputs - 1 + margin)
    weights = np.maximum(0.0, 1.0 - np.abs(columns - at[:, None]) / reach)
    # Normalised over inputs that may not exist: at -margin, half of the kernel.
    full = np.maximum(0.0, 1.0 - np.abs(np.arange(-margin, margin + 1) - (at % 1)[:, None]) / reach)
    weights /= full.sum(axis=1, keepdims=True)
    return sparse.csr_array(weights[:, margin:-margin].astype(np.float32))


def _sample(
    planes: npt.NDArray[Any],
    rows: sparse.csr_array,
    columns: sparse.csr_array,
    outside: float,
) -> npt.NDArray[np.float32]:
    """Planes (..., rows, columns) times both matrices.

    Two sparse products per plane: five times faster than dense ones, and those are several times
    faster than a general affine transform.
    """
    sampled = np.empty((*planes.shape[:-2], rows.shape[0], columns.shape[0]), np.float32)
    for index in np.ndindex(planes.shape[:-2]):
        shifted = planes[index].astype(np.float32)
        if outside:
            shifted -= np.float32(outside)
        half = rows @ shifted
        sampled[index] = (columns @ np.ascontiguousarray(half.T)).T
    if outside:
        sampled += np.float32(outside)
    return sampled


def center_slices(count: int) -> range:
    """At most 16 slices of ``count``, evenly apart: they say where the body is.

    Only these have to be decoded before the network can begin.
    """
    return range(0, count, -(-count // 16))


def grid_on_body(
    array: npt.NDArray[np.int16],
    spacing_mm: Sequence[float],
    size: int,
    grid_spacing_mm: float,
    tissue_threshold: int,
) -> PlaneGrid:
    """Centre the network's square on the body.

    ``array`` has axes (slice, row, column); the centre is the mean of all voxels above
    ``tissue_threshold`` (HU) in :func:`center_slices`, or the middle of the plane where there is
    none.
    """
    looked_at = array[center_slices(len(array)), ::4, ::4]
    mass = (looked_at > tissue_threshold).sum(axis=0, dtype=np.int64)
    rows, columns = array.shape[1:]
    center = ((rows - 1) / 2, (columns - 1) / 2)
    if mass.any():
        row, column = ndimage.center_of_mass(mass)
        center = (float(row) * 4, float(column) * 4)
    return PlaneGrid(
        size, grid_spacing_mm, (rows, columns), (float(spacing_mm[1]), float(spacing_mm[2])), center
    )
