"""One series as one array in the patient's coordinate system.

Geometry (:func:`series_geometry`) needs headers only, so that the hospital side can refuse a
series before anything is de-identified; :func:`volume_from_series` adds the pixels.

References: PS3.3 2026b C.7.6.2.1.1 (Image Position and Orientation), C.11.1 (Modality LUT).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from node.errors import GeometryError
from node.imaging.pixels import modality_values, number_of
from node.sdk import Volume

AFFINE_KEYWORDS = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
SAME_IN_ALL_KEYWORDS = ("Rows", "Columns", "PixelSpacing", "FrameOfReferenceUID")

SPACING_TOLERANCE = 0.01
"""A gap may differ from the median by this share of it ..."""
POSITION_TOLERANCE_MM = 0.101
"""... or by this much, because scanners write positions rounded to a tenth of a millimetre."""
DUPLICATE_DISTANCE_MM = 0.01
COSINE_TOLERANCE = 1e-3
TILT_TOLERANCE_DEGREES = 0.5
IN_PLANE_TOLERANCE_MM = 0.5

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Geometry:
    """Where the slices of one series lie.

    Attributes
    ----------
    order
        Indices into the given instances, ascending along the slice normal (row direction cosines
        cross column direction cosines).
    affine
        4x4, homogeneous index (slice, row, column) to patient LPS coordinates in millimetres, at
        voxel centres.
    spacing_mm
        Distance between voxel centres along (slice, row, column).
    shape
        (slices, rows, columns).
    """

    order: tuple[int, ...]
    affine: FloatArray
    spacing_mm: tuple[float, float, float]
    shape: tuple[int, int, int]


def volume_from_series(instances: Sequence[Dataset]) -> Volume:
    """Stack the instances of one single-frame series along its slice normal.

    Parameters
    ----------
    instances
        All instances of one CT or MR series, with pixel data, in any order.

    Returns
    -------
    Volume
        Slices ascend along the normal, whatever the order or InstanceNumber.

    Raises
    ------
    GeometryError
        See :func:`series_geometry`.
    UnsupportedTransferSyntax
        No decoder here reads the pixel data.
    DamagedInstance
        Pixel data is missing, truncated or does not decode.
    """
    geometry = series_geometry(instances)
    array = np.empty(geometry.shape, dtype=np.int16)
    for index, source in enumerate(geometry.order):
        array[index] = modality_values(instances[source])
    uids = tuple(str(instances[source].SOPInstanceUID) for source in geometry.order)
    return Volume(array, geometry.affine, geometry.spacing_mm, uids)


def series_geometry(instances: Sequence[Dataset]) -> Geometry:
    """Order, affine and spacing of a series; reads headers only.

    Raises
    ------
    GeometryError
        One instance only; an attribute is missing or differs between instances; slices are not
        parallel; two share a position; a gap differs from the median by more than 1 % (and
        0.1 mm); the stack is sheared (gantry tilt) by more than half a degree.

    References
    ----------
    PS3.3 2026b C.7.6.2.1.1.
    """
    if len(instances) < 2:
        raise GeometryError(
            f"The series has {len(instances)} image instance(s); a volume needs two or more",
            remedy="Send the whole series, or choose one that is not a localizer or single image.",
        )
    _require_single_frames_of_one_size(instances)
    row_cosines, column_cosines = _shared_orientation(instances)
    normal = np.cross(row_cosines, column_cosines)

    positions = np.array(
        [
            _numbers(ds, place, "ImagePositionPatient", 3)
            for place, ds in enumerate(instances, start=1)
        ]
    )
    order = tuple(int(i) for i in np.argsort(positions @ normal, kind="stable"))
    ordered = [instances[i] for i in order]
    positions = positions[list(order)]
    gaps = np.diff(positions @ normal)
    _require_even_gaps(ordered, gaps)
    step = (positions[-1] - positions[0]) / (len(ordered) - 1)
    _require_stack_along_normal(ordered, positions, step, normal)

    row_spacing, column_spacing = _numbers(instances[0], 1, "PixelSpacing", 2)
    if row_spacing <= 0 or column_spacing <= 0:
        raise GeometryError("PixelSpacing (0028,0030) is not positive")
    affine = np.eye(4)
    affine[:3, 0] = step
    # PS3.3 C.7.6.2.1.1: the second cosine triplet is the direction of a column, along which the
    # row index grows by PixelSpacing[0].
    affine[:3, 1] = column_cosines * row_spacing
    affine[:3, 2] = row_cosines * column_spacing
    affine[:3, 3] = positions[0]
    spacing_mm = (float(np.linalg.norm(step)), float(row_spacing), float(column_spacing))
    shape = (len(ordered), int(instances[0].Rows), int(instances[0].Columns))
    return Geometry(order, affine, spacing_mm, shape)


def _require_single_frames_of_one_size(instances: Sequence[Dataset]) -> None:
    for place, ds in enumerate(instances, start=1):
        for keyword in (*AFFINE_KEYWORDS, "Rows", "Columns", "SOPInstanceUID"):
            if ds.get(keyword) in (None, ""):
                raise GeometryError(
                    f"Instance {number_of(ds, place)} has no {keyword}, so it has no place in the "
                    "patient",
                    remedy="Send the original cross-sectional images, not screenshots or reports.",
                )
        if int(ds.get("NumberOfFrames") or 1) != 1:
            raise GeometryError(
                f"Instance {number_of(ds, place)} is multi-frame (NumberOfFrames); "
                "only single-frame CT and MR are read",
                remedy="Have the scanner or PACS export the series as single-frame instances.",
            )
    first = instances[0]
    for place, ds in enumerate(instances[1:], start=2):
        for keyword in SAME_IN_ALL_KEYWORDS:
            if ds.get(keyword) != first.get(keyword):
                raise GeometryError(
                    f"{keyword} differs between instances {number_of(first, 1)} and "
                    f"{number_of(ds, place)}",
                    remedy="Send one reconstruction only; the series mixes several.",
                )


def _shared_orientation(instances: Sequence[Dataset]) -> tuple[FloatArray, FloatArray]:
    """Row and column direction cosines, orthonormal, common to all instances."""
    first = _numbers(instances[0], 1, "ImageOrientationPatient", 6)
    for place, ds in enumerate(instances[1:], start=2):
        cosines = _numbers(ds, place, "ImageOrientationPatient", 6)
        if np.abs(cosines - first).max() > COSINE_TOLERANCE:
            raise GeometryError(
                f"Instances {number_of(instances[0], 1)} and {number_of(ds, place)} are not "
                "parallel (ImageOrientationPatient differs)",
                remedy="Remove the localizer or reformat from the series and send it again.",
            )
    row, column = first[:3], first[3:]
    lengths = (np.linalg.norm(row), np.linalg.norm(column))
    if max(abs(length - 1) for length in lengths) > COSINE_TOLERANCE or (
        abs(float(row @ column)) > COSINE_TOLERANCE
    ):
        raise GeometryError(
            "ImageOrientationPatient (0020,0037) is not two orthogonal unit vectors",
            remedy="The header is damaged: send the series again from its source.",
        )
    return row / lengths[0], column / lengths[1]


def _require_even_gaps(ordered: Sequence[Dataset], gaps: FloatArray) -> None:
    for index in np.flatnonzero(gaps < DUPLICATE_DISTANCE_MM).tolist():
        raise GeometryError(
            f"Instances {number_of(ordered[index], index + 1)} and "
            f"{number_of(ordered[index + 1], index + 2)} "
            "lie at the same position (0 mm apart)",
            remedy="Send one reconstruction or phase only; the series holds several.",
        )
    median = float(np.median(gaps))
    tolerance = max(SPACING_TOLERANCE * median, POSITION_TOLERANCE_MM)
    for index in np.flatnonzero(np.abs(gaps - median) > tolerance).tolist():
        raise GeometryError(
            f"Slice gap {gaps[index]:.2f} mm between instances "
            f"{number_of(ordered[index], index + 1)} and "
            f"{number_of(ordered[index + 1], index + 2)}, expected {median:.2f} mm",
            remedy="Instances are missing or unevenly spaced: send the complete series again.",
        )


def _require_stack_along_normal(
    ordered: Sequence[Dataset], positions: FloatArray, step: FloatArray, normal: FloatArray
) -> None:
    along = float(step @ normal)
    across = float(np.linalg.norm(step - along * normal))
    tilt_degrees = math.degrees(math.atan2(across, along))
    if tilt_degrees > TILT_TOLERANCE_DEGREES:
        raise GeometryError(
            f"Gantry tilt of {tilt_degrees:.1f} degrees: from instance {number_of(ordered[0], 1)} "
            f"to {number_of(ordered[-1], len(ordered))} the slices shift {across:.2f} mm "
            "in-plane per slice",
            remedy="Reformat the series without tilt at the scanner and send that.",
        )
    expected = positions[0] + np.arange(len(ordered))[:, None] * step
    shifts = np.linalg.norm(positions - expected, axis=1)
    worst = int(np.argmax(shifts))
    # Along the normal the gaps are already even; what is left here is a sideways jump.
    if shifts[worst] > max(IN_PLANE_TOLERANCE_MM, 0.1 * along):
        raise GeometryError(
            f"Instance {number_of(ordered[worst], worst + 1)} lies {shifts[worst]:.2f} mm beside "
            "the line of the other slices",
            remedy="The series mixes several acquisitions: send one of them.",
        )


def _numbers(ds: Dataset, place: int, keyword: str, count: int) -> FloatArray:
    """The attribute as float64, or a GeometryError that names it and never its value."""
    value: Any = ds.get(keyword)
    try:
        numbers = np.asarray([float(v) for v in value], dtype=np.float64)
    except (TypeError, ValueError):
        numbers = np.empty(0)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise GeometryError(
            f"{keyword} of instance {number_of(ds, place)} is not {count} numbers",
            remedy="The header is damaged: send the series again from its source.",
        )
    return numbers
