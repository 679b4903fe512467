"""Labels as people keep them: DICOM SEG, NIfTI, and packed masks.

What lies beside a series decides: a Segmentation that references it, else a NIfTI file in its
folder, else labels in an ``.npz`` file. Positions are compared, never guessed: the readers are
those of foreign programs' results.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from node.errors import UnsuitableInput
from node.foreign import nifti, seg
from node.foreign.labels import as_segments
from node.manifest import Segment
from node.training.recipe import Labels
from node.training.series import Series


@dataclass(frozen=True)
class LabelFiles:
    """All labels below a folder, found once."""

    segmentations: tuple[tuple[Path, Dataset], ...]
    """DICOM Segmentations and their headers."""
    nifti_files: tuple[Path, ...]
    planes: Mapping[str, npt.NDArray[Any]]
    """Labels (rows, columns) by SOP Instance UID, of ``.npz`` files."""

    def of(self, series: Series, segments: Sequence[Segment]) -> Labels | None:
        """Labels of a series, uint8 (slices, rows, columns); None where there are none.

        A Segmentation's segments are matched with ``segments`` by their coded type, values of
        NIfTI and npz by number. What is not among them is background.

        Raises
        ------
        ProgramFailed
            Labels are there, but cannot be read or lie elsewhere in the patient.
        UnsuitableInput
            They have another shape, or no segment of the model's types.
        """
        numbers = {segment.number: segment.number for segment in segments}
        for path, header in self.segmentations:
            if _references(header, series):
                numbers = _by_coded_type(header, segments)
                values = seg.read_labels(path, series.volume, numbers)
                return as_segments(values, numbers, ignore_others=True)
        for path in self.nifti_files:
            if path.parent == series.files[0].parent or path.name.split(".nii")[0] == series.name:
                values = nifti.read_labels(path, series.volume, may_resample=True)
                return as_segments(values, numbers, ignore_others=True)
        if all(uid in self.planes for uid in series.volume.sop_instance_uids):
            values = np.stack([self.planes[uid] for uid in series.volume.sop_instance_uids])
            if values.shape != series.volume.array.shape:
                raise UnsuitableInput(
                    f"Labels of shape {values.shape} for a series of {series.volume.array.shape}",
                    remedy="Write the labels on the grid of the series.",
                )
            return as_segments(values, numbers, ignore_others=True)
        return None


def label_files(*data: Path) -> LabelFiles:
    """Find the labels below folders, at any depth."""
    segmentations, niftis, arrays = [], [], []
    for path in sorted(path for place in data for path in place.rglob("*") if path.is_file()):
        if path.name.endswith((".nii", ".nii.gz")):
            niftis.append(path)
        elif path.suffix == ".npz":
            arrays.append(path)
        else:
            header = _header(path)
            if header is not None and header.get("Modality") == "SEG":
                segmentations.append((path, header))
    planes = arrays_by_sop_instance_uid(arrays, "labels")
    return LabelFiles(tuple(segmentations), tuple(niftis), planes)


def _header(path: Path) -> Dataset | None:
    try:
        return dcmread(path, stop_before_pixels=True)
    except (InvalidDicomError, OSError):
        return None


def _references(segmentation: Dataset, series: Series) -> bool:
    """PS3.3 C.12.1.1.2, Common Instance Reference, and ReferencedSeriesSequence of the SEG."""
    referenced = segmentation.get("ReferencedSeriesSequence") or ()
    return any(item.SeriesInstanceUID == series.header.SeriesInstanceUID for item in referenced)


def masks_by_sop_instance_uid(paths: Sequence[Path]) -> dict[str, npt.NDArray[np.bool_]]:
    """Binary masks (rows, columns) by the SOP Instance UID that each belongs to.

    Each ``.npz`` holds ``shape`` (slices, rows, columns), ``mask`` (its bits, packed) and ``sop``
    (the UIDs, in slice order); others are passed over. A mask may be smaller than its image: it
    shows the same field.
    """
    return arrays_by_sop_instance_uid(paths, "mask")


def arrays_by_sop_instance_uid(paths: Sequence[Path], key: str) -> dict[str, npt.NDArray[Any]]:
    """Planes of the array ``key`` of each ``.npz`` that has it, by SOP Instance UID (``sop``)."""
    planes: dict[str, npt.NDArray[Any]] = {}
    for path in paths:
        try:
            with np.load(path, allow_pickle=False) as file:
                if key in file and "sop" in file:
                    planes.update(zip(file["sop"].tolist(), _unpacked(file, key), strict=True))
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise UnsuitableInput(
                f"A file of labels cannot be read ({type(error).__name__})",
                remedy="It must be an .npz without pickled objects, with one plane per UID.",
            ) from None
    return planes


def _unpacked(file: Mapping[str, npt.NDArray[Any]], key: str) -> npt.NDArray[Any]:
    if "shape" not in file:
        return file[key]
    shape = tuple(int(n) for n in file["shape"])
    bits = np.unpackbits(file[key])[: math.prod(shape)]
    return bits.reshape(shape).astype(bool)


def _by_coded_type(header: Dataset, segments: Sequence[Segment]) -> dict[int, int]:
    """SegmentNumber of the Segmentation to number of ours, by SegmentedPropertyType."""
    ours = {(segment.type.scheme, segment.type.value): segment.number for segment in segments}
    matched = {}
    for item in header.SegmentSequence:
        code = item.SegmentedPropertyTypeCodeSequence[0]
        number = ours.get((str(code.CodingSchemeDesignator), str(code.get("CodeValue"))))
        if number is not None:
            matched[int(item.SegmentNumber)] = number
    if not matched:
        raise UnsuitableInput(
            "A Segmentation of the series has no segment of the model's coded types",
            remedy="Use the codes of the model's segments (SegmentedPropertyTypeCodeSequence).",
        )
    return matched
