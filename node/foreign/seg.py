"""A DICOM Segmentation that a program wrote, as an array on the grid of the series.

Read with pydicom alone: the compute zone has no highdicom. Every frame must lie on a slice of the
series, by its position and, where it names its source, by SOP Instance UID too; a frame that lies
between slices is refused, never moved.

Reference: PS3.3 2026b A.51, C.8.20.2 (Segmentation Image), C.7.6.16.2 (functional groups).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.uid import SegmentationStorage

from node.errors import ProgramFailed
from node.foreign.grid import Array, Grid, on_same_grid
from node.sdk import Volume

LABEL_MAP_SEGMENTATION_STORAGE = "1.2.840.10008.5.1.4.1.1.66.7"


def read_labels(path: Path, volume: Volume, wanted: Mapping[int, int]) -> Array:
    """The program's segment numbers, int32, shape (slices, rows, columns) of the volume.

    Parameters
    ----------
    wanted
        SegmentNumber of the program to number of ours. Of two segments in one voxel the one that is
        not wanted gives way.

    Raises
    ------
    ProgramFailed
        No BINARY or LABELMAP segmentation; a frame lies on no slice of the series, or names
        another source than the slice it lies on; two wanted segments share a voxel.
    """
    try:
        seg = dcmread(path)
        return _labels(seg, seg.pixel_array, volume, wanted)
    except (InvalidDicomError, OSError, EOFError, ValueError, TypeError, KeyError, IndexError,
            AttributeError, NotImplementedError, RuntimeError) as error:  # fmt: skip
        raise ProgramFailed(
            f"The labels cannot be read as DICOM Segmentation ({type(error).__name__})"
        ) from None


def _labels(seg: Dataset, pixels: Array, volume: Volume, wanted: Mapping[int, int]) -> Array:
    labelmap = seg.SOPClassUID == LABEL_MAP_SEGMENTATION_STORAGE
    if not labelmap and (
        seg.SOPClassUID != SegmentationStorage or seg.SegmentationType != "BINARY"
    ):
        raise ProgramFailed(
            "The labels are no BINARY or LABELMAP segmentation (SOPClassUID, SegmentationType)",
            remedy="Have the program write a BINARY DICOM Segmentation.",
        )
    pixels = pixels.reshape(-1, seg.Rows, seg.Columns)
    groups = seg.PerFrameFunctionalGroupsSequence
    if len(groups) != len(pixels):
        raise ProgramFailed("PerFrameFunctionalGroupsSequence does not describe every frame")
    labels = np.zeros(volume.array.shape, np.int32)
    for number, (frame, own) in enumerate(zip(pixels, groups, strict=True), start=1):
        described = _Frame(number, own, seg.SharedFunctionalGroupsSequence[0])
        slice_index, turned = described.placed(frame, volume)
        if labelmap:
            numbers = np.flatnonzero(np.bincount(turned.ravel())).tolist()
            for segment in (number for number in numbers if number):
                _lay(labels[slice_index], turned == segment, segment, wanted)
        else:
            segment = int(described.group("SegmentIdentificationSequence").ReferencedSegmentNumber)
            _lay(labels[slice_index], turned != 0, segment, wanted)
    return labels


class _Frame:
    """One frame and its functional groups, its own before the shared ones."""

    def __init__(self, number: int, own: Dataset, shared: Dataset) -> None:
        self._number, self._groups = number, (own, shared)

    def group(self, keyword: str) -> Dataset:
        """The one item of a functional group; KeyError where there is none."""
        for groups in self._groups:
            if keyword in groups:
                item: Dataset = groups[keyword].value[0]
                return item
        raise KeyError(keyword)

    def placed(self, pixels: Array, volume: Volume) -> tuple[int, Array]:
        """Index of the slice that the frame lies on, and its pixels turned to that slice."""
        affine = self._affine(volume)
        middle = affine @ [0, (pixels.shape[0] - 1) / 2, (pixels.shape[1] - 1) / 2, 1]
        index = round(float(np.linalg.solve(volume.affine, middle)[0]))
        if not 0 <= index < len(volume.array):
            raise ProgramFailed(f"Frame {self._number} of the labels lies outside the series")
        slab = volume.affine.copy()
        slab[:3, 3] += index * slab[:3, 0]
        turned = on_same_grid(
            pixels[None],
            Grid(affine, (1, *pixels.shape)),
            Grid(slab, (1, *volume.array.shape[1:])),
        )
        if turned is None:
            raise ProgramFailed(
                f"Frame {self._number} of the labels does not lie on a slice of the series "
                "(PlanePositionSequence, PlaneOrientationSequence, PixelMeasuresSequence)",
                remedy="Have the program write its segmentation on the grid of its input.",
            )
        sources = self._sources()
        if sources and volume.sop_instance_uids[index] not in sources:
            raise ProgramFailed(
                f"Frame {self._number} of the labels names another source "
                "(ReferencedSOPInstanceUID) than the slice that it lies on"
            )
        return index, turned[0]

    def _affine(self, volume: Volume) -> npt.NDArray[np.float64]:
        """Index (0, row, column) to LPS; the first axis is that of the series."""
        position = self.group("PlanePositionSequence").ImagePositionPatient
        cosines = np.array(
            self.group("PlaneOrientationSequence").ImageOrientationPatient, np.float64
        )
        down, across = self.group("PixelMeasuresSequence").PixelSpacing
        affine = np.eye(4)
        affine[:3, 0] = volume.affine[:3, 0]
        affine[:3, 1] = cosines[3:] * float(down)
        affine[:3, 2] = cosines[:3] * float(across)
        affine[:3, 3] = position
        return affine

    def _sources(self) -> set[str]:
        try:
            derivation = self.group("DerivationImageSequence")
        except (KeyError, IndexError):
            return set()
        items: Any = derivation.get("SourceImageSequence") or ()
        return {str(item.ReferencedSOPInstanceUID) for item in items}


def _lay(plane: Array, here: Array, number: int, wanted: Mapping[int, int]) -> None:
    """Lay one segment of a frame over what earlier frames found on the same slice."""
    if number not in wanted:
        plane[here & (plane == 0)] = number
        return
    before = set(plane[here].tolist())
    if any(other in wanted and wanted[other] != wanted[number] for other in before):
        raise ProgramFailed(
            "Two segments share a voxel; a label map holds one",
            remedy="Name one of them only in [command.labels] of model.toml.",
        )
    plane[here] = number
