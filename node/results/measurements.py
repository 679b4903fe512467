"""What is measured of each segment: volume, intensity, extent. Pure functions on arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist

from node.manifest import Segment
from node.sdk import LabelMap, Radiograph, Volume


@dataclass(frozen=True)
class SegmentMeasurements:
    """Of one segment, as measured: nothing is rounded, for a single small voxel is a finding too.
    A segment that was not found has a volume of 0 and no more.

    Attributes
    ----------
    number
        :attr:`node.manifest.Segment.number`.
    volume_ml
        Voxels times the volume of one.
    mean, standard_deviation
        Of the source's values in the segment: Hounsfield units for CT, arbitrary for MR.
    diameter_mm
        Largest distance between two points of the surface.
    first_slice, last_slice
        Indices into the volume's slices, both included.
    """

    number: int
    volume_ml: float
    mean: float | None = None
    standard_deviation: float | None = None
    diameter_mm: float | None = None
    first_slice: int | None = None
    last_slice: int | None = None

    @property
    def is_present(self) -> bool:
        """Whether at least one voxel is labelled."""
        return self.first_slice is not None


@dataclass(frozen=True)
class ProjectedMeasurements:
    """Of one segment of a radiograph. What a pixel measures in the patient, a projection does not
    say: there are no millilitres and no millimetres.

    Attributes
    ----------
    number
        :attr:`node.manifest.Segment.number`.
    share
        Of the image's area, 0 to 1; 0 where the segment was not found.
    """

    number: int
    share: float

    @property
    def is_present(self) -> bool:
        """Whether at least one pixel is labelled."""
        return self.share > 0


Measurements = Sequence[SegmentMeasurements | ProjectedMeasurements]
"""Of one result: all of a volume, or all of a radiograph, in the order of its segments."""


def measure(
    volume: Volume, label_map: LabelMap, segments: Sequence[Segment]
) -> list[SegmentMeasurements]:
    """Measure each segment, in the order given."""
    return [_measured(volume, label_map.array == s.number, s.number) for s in segments]


def measure_case(
    case: Volume | Radiograph, label_map: LabelMap, segments: Sequence[Segment]
) -> Measurements:
    """Measure what was segmented, whichever it is."""
    if isinstance(case, Volume):
        return measure(case, label_map, segments)
    shares = {s.number: float((label_map.array == s.number).mean()) for s in segments}
    return [ProjectedMeasurements(number, share) for number, share in shares.items()]


def volume_in_words(volume_ml: float) -> str:
    """Millilitres for a person: tenths, and below one millilitre two digits that are not zero."""
    if volume_ml >= 1:
        return f"{volume_ml:,.1f} ml"
    return f"{volume_ml:.{1 - math.floor(math.log10(volume_ml))}f} ml" if volume_ml else "not found"


def share_in_words(share: float) -> str:
    """A share of a radiograph's area for a person."""
    if not share:
        return "not found"
    return f"{share:.1%} of the image" if share >= 0.0005 else "less than 0.1% of the image"


def amount_in_words(found: SegmentMeasurements | ProjectedMeasurements) -> str:
    """How much was found of a segment, in one short phrase."""
    if isinstance(found, ProjectedMeasurements):
        return share_in_words(found.share)
    return volume_in_words(found.volume_ml)


def as_json(measurements: Measurements) -> list[dict[str, Any]]:
    """One plain object for each segment, its keys the names of the attributes."""
    return [asdict(found) for found in measurements]


def from_json(entries: Sequence[Mapping[str, Any]]) -> Measurements:
    """What :func:`as_json` wrote."""
    if any("share" in entry for entry in entries):
        return [ProjectedMeasurements(**entry) for entry in entries]
    return [SegmentMeasurements(**entry) for entry in entries]


def _measured(volume: Volume, mask: npt.NDArray[np.bool_], number: int) -> SegmentMeasurements:
    slices = np.flatnonzero(mask.any(axis=(1, 2)))
    if not slices.size:
        return SegmentMeasurements(number, 0.0)
    first, last = int(slices[0]), int(slices[-1])
    # Only where the segment is: most of a chest is not lung, most of a body not liver.
    mask = mask[first : last + 1]
    values = volume.array[first : last + 1][mask]
    return SegmentMeasurements(
        number=number,
        volume_ml=values.size * volume.voxel_ml,
        mean=float(values.mean(dtype=np.float64)),
        standard_deviation=float(values.std(dtype=np.float64)),
        diameter_mm=surface_diameter_mm(mask, volume.affine),
        first_slice=first,
        last_slice=last,
    )


def surface_diameter_mm(mask: npt.NDArray[np.bool_], affine: npt.NDArray[np.float64]) -> float:
    """Largest distance between two points of a mask's surface.

    The surface's points are the middles of the voxel faces that separate inside from outside,
    which is where marching cubes puts its vertices (IBSI reference manual 1.0, 3.1.11, L0JK).

    Parameters
    ----------
    mask
        Shape (slices, rows, columns), not empty.
    affine
        4x4, index (slice, row, column) to millimetres; need not be orthogonal.
    """
    # Both ends of every line of voxels along each axis: the corners of the hull are among them.
    faces = np.concatenate([_line_ends(mask, axis) for axis in range(3)])
    points_mm = faces @ affine[:3, :3].T
    corners_mm = points_mm[ConvexHull(points_mm).vertices]
    return float(pdist(corners_mm).max())


def _line_ends(mask: npt.NDArray[np.bool_], axis: int) -> npt.NDArray[np.float64]:
    """Index coordinates (n, 3) of the outermost faces of every line along ``axis``."""
    across = np.argwhere(mask.any(axis=axis)).T
    lines = np.moveaxis(mask, axis, -1)[tuple(across)]
    firsts = lines.argmax(axis=1) - 0.5
    lasts = lines.shape[1] - lines[:, ::-1].argmax(axis=1) - 0.5
    ends = [np.insert(across.astype(float), axis, along, axis=0) for along in (firsts, lasts)]
    return np.concatenate(ends, axis=1).T
