"""The source series of a result, as the encoder needs it: small, complete, in one charset."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
)
from pydicom.valuerep import DA, DS, TM

from node.errors import GeometryError, Rejected

#: Type 2 of Patient, General Study and Image Plane: highdicom refuses them absent; empty is legal.
_TYPE_2 = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "StudyID",
    "SliceThickness",
)

#: What an instance is called.
_NAMES = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")

#: What every image must say.
_NEEDED_OF_ANY = (
    *_NAMES,
    "Rows",
    "Columns",
)

#: What every slice must say; PS3.3 C.7.6.2 (Image Plane), C.7.4.1 (Frame of Reference).
_NEEDED = (
    *_NEEDED_OF_ANY,
    "FrameOfReferenceUID",
    "PixelSpacing",
    "ImageOrientationPatient",
    "ImagePositionPatient",
)

#: The same in all slices of one volume.
_SHARED = (
    "SOPClassUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "Rows",
    "Columns",
)

#: Images without a place in the patient: PS3.3 A.2 (CR), A.26 (DX).
_PROJECTIONS = frozenset({ComputedRadiographyImageStorage, DigitalXRayImageStorageForPresentation})

#: The same too, but for the last digits.
_GRID = ("ImageOrientationPatient", "PixelSpacing")

_ORIENTATION_TOLERANCE = 1e-3  # direction cosines; scanners write four decimals or more
_MINIMUM_GAP_MM = 1e-3


@dataclass(frozen=True)
class SourceSeries:
    """Headers fit for encoding, in the order of the label map's slices.

    Attributes
    ----------
    headers
        Copies without pixel data and private elements; type 2 elements that were absent are empty.
    """

    headers: tuple[Dataset, ...]

    @classmethod
    def of(cls, instances: Sequence[Dataset]) -> SourceSeries:
        """Copy what the encoder needs of each instance: slices of one volume, or one radiograph.

        Raises
        ------
        Rejected
            An element is absent that no Segmentation can do without.
        GeometryError
            The slices do not share one grid, or two of them share one position.
        """
        if not instances:
            raise Rejected("A segmentation needs at least one source instance")
        if instances[0].get("SOPClassUID") in _PROJECTIONS:
            return cls((_projection(instances),))
        _require(instances, _NEEDED)
        _check_one_grid(instances)
        # highdicom reads patient, study and spacing from the first header, the plane from each.
        first = _complete(instances[0])
        _measure(first, instances)
        return cls((first, *(_slice_only(other, like=first) for other in instances[1:])))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(slices, rows, columns)."""
        first = self.headers[0]
        return len(self.headers), int(first.Rows), int(first.Columns)


def named(instances: Sequence[Dataset]) -> tuple[Dataset, ...]:
    """Headers of instances that a document only names: the first one complete, whatever its grid.

    Raises
    ------
    Rejected
        An instance does not say which it is.
    """
    _require(instances, _NAMES)
    return (_complete(instances[0]), *instances[1:])


def is_projection(header: Dataset) -> bool:
    """Whether a source header is of a radiograph: an image without a place in the patient."""
    return "ImagePositionPatient" not in header


def positions_along_normal_mm(headers: Sequence[Dataset]) -> NDArray[np.float64]:
    """Each slice's position projected on the normal of the stack (float64, millimetres)."""
    rows, columns = np.reshape(np.asarray(headers[0].ImageOrientationPatient, float), (2, 3))
    corners = np.asarray([header.ImagePositionPatient for header in headers], float)
    return np.asarray(corners @ np.cross(rows, columns))


def _projection(instances: Sequence[Dataset]) -> Dataset:
    """One radiograph. A segmentation on its grid needs neither position nor spacing: the standard
    wants them where frames are not derived from an image (PS3.3 A.51.5). Of spacing alone,
    highdicom would write Pixel Measures without a SliceThickness, and refuse to read them."""
    if len(instances) > 1:
        raise GeometryError("A segmentation of radiographs is of one image")
    _require(instances, _NEEDED_OF_ANY)
    header = _complete(instances[0])
    # Some writers fill in what has no meaning in a projection.
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        header.pop(keyword, None)
    return header


def _require(instances: Sequence[Dataset], keywords: Sequence[str]) -> None:
    for number, instance in enumerate(instances, start=1):
        for keyword in keywords:
            if not instance.get(keyword):
                raise Rejected(f"Source slice {number} of {len(instances)} has no {keyword}")


def _check_one_grid(instances: Sequence[Dataset]) -> None:
    first = instances[0]
    shared = {keyword: first[keyword].value for keyword in _SHARED}
    shape = {keyword: _numbers(first, keyword) for keyword in _GRID}
    for number, other in enumerate(instances, start=1):
        for keyword, value in shared.items():
            if other[keyword].value != value:
                raise GeometryError(f"Source slices 1 and {number} differ in {keyword}")
        for keyword, expected in shape.items():
            found = _numbers(other, keyword)
            near = len(found) == len(expected) and all(
                abs(one - wanted) <= _ORIENTATION_TOLERANCE
                for one, wanted in zip(found, expected, strict=True)
            )
            if not near:
                raise GeometryError(f"Source slices 1 and {number} differ in {keyword}")
    along_mm = positions_along_normal_mm(instances)
    order = np.argsort(along_mm, kind="stable")
    close = np.flatnonzero(np.diff(along_mm[order]) < _MINIMUM_GAP_MM)
    if close.size:
        one, two = sorted(int(order[close[0] + offset]) + 1 for offset in (0, 1))
        raise GeometryError(f"Source slices {one} and {two} have the same position")


def _numbers(instance: Dataset, keyword: str) -> list[float]:
    return [float(value) for value in instance[keyword].value]


def _complete(instance: Dataset) -> Dataset:
    """A copy of the whole header, decoded, with every type 2 element present and readable."""
    copy = Dataset()
    for element in instance:
        # Overlays (60xx) go with the pixels; private data has no place in a result.
        if element.tag.is_private or element.tag.group >= 0x6000:
            continue
        copy.add(deepcopy(element))
    copy.remove_private_tags()
    for keyword in _TYPE_2:
        if keyword not in copy or not _is_readable(copy, keyword):
            setattr(copy, keyword, None)
    return copy


def _measure(first: Dataset, instances: Sequence[Dataset]) -> None:
    """Take the spacing between slices from their positions: the attribute of that name holds a gap
    in some modalities, and most CT has none."""
    gaps_mm = np.diff(np.sort(positions_along_normal_mm(instances)))
    first.pop("SpacingBetweenSlices", None)
    if gaps_mm.size:
        spacing_mm = round(float(np.median(gaps_mm)), 6)
        first.SpacingBetweenSlices = DS(spacing_mm, auto_format=True)
        first.SliceThickness = first.SliceThickness or first.SpacingBetweenSlices


def _slice_only(instance: Dataset, *, like: Dataset) -> Dataset:
    copy = Dataset()
    for keyword in _NEEDED:
        # highdicom compares digit by digit; scanners jitter in the last one.
        copy.add((like if keyword == "ImageOrientationPatient" else instance)[keyword])
    return copy


def _is_readable(header: Dataset, keyword: str) -> bool:
    """Whether highdicom can parse the value; what it cannot is left empty, never guessed."""
    parse = _PARSERS.get(keyword)
    if parse is None:
        return True
    try:
        parse(header[keyword].value)
    except (ValueError, TypeError):
        return False
    return True


def _sex(value: str) -> None:
    if value and value not in ("M", "F", "O"):
        raise ValueError("not a defined term of PatientSex")


_PARSERS: Mapping[str, Callable[[str], object]] = {
    "PatientBirthDate": DA,
    "StudyDate": DA,
    "StudyTime": TM,
    "PatientSex": _sex,
}
