"""CT series that no patient lay for: a chest that looks different from every side.

The anatomy is painted in the patient's coordinate system (LPS, mm) and sampled through each
slice's position and orientation, so a series in any patient position, spacing or tilt shows the
same body. The left lung is smaller than the right one and the heart lies left, the spine lies
posterior, the liver is on the right below, the lungs narrow towards the head.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

FloatArray = npt.NDArray[np.float64]

ORIENTATIONS: Mapping[str, tuple[int, ...]] = {
    # Row and column direction cosines as scanners write them for each Patient Position.
    "HFS": (1, 0, 0, 0, 1, 0),
    "HFP": (-1, 0, 0, 0, -1, 0),
    "HFDR": (0, -1, 0, 1, 0, 0),
    "HFDL": (0, 1, 0, -1, 0, 0),
    "FFS": (-1, 0, 0, 0, 1, 0),
    "FFP": (1, 0, 0, 0, -1, 0),
}

AIR, LUNG, FAT, SOFT, HEART, LIVER, BONE = -1000, -850, -80, 30, 45, 70, 600
LEFT_LUNG, RIGHT_LUNG = 1, 2

PADDING = -2000
RESCALE_INTERCEPT = -1024


def chest_hu(points: FloatArray) -> FloatArray:
    """Hounsfield units at LPS points (..., 3), mm; the thorax centre is the origin."""
    x, y, z = points[..., 0], points[..., 1], points[..., 2]
    hu = np.full(points.shape[:-1], float(AIR))
    hu[_inside(x, y, (0, 0), (165, 110))] = FAT
    hu[_inside(x, y, (0, 0), (152, 98))] = SOFT
    hu[_inside(x, y, (0, 78), (20, 17))] = BONE
    hu[_inside(x, y, (0, -92), (16, 7))] = BONE
    labels = chest_labels(points)
    hu[labels > 0] = LUNG
    hu[_inside(x, y, (-60, 0), (75, 62)) & (z < -60 - 0.15 * np.abs(y))] = LIVER
    hu[_inside(x, y, (28, -32), (42, 34)) & (np.abs(z + 20) < 50)] = HEART
    hu[_inside(x, y, (0, 22), (9, 9)) & (z > 20)] = AIR
    return hu


def chest_labels(points: FloatArray) -> npt.NDArray[np.uint8]:
    """1 in the left lung, 2 in the right lung, else 0, at LPS points (..., 3), mm."""
    x, y, z = points[..., 0], points[..., 1], points[..., 2]
    narrow = np.clip((130 - z) / 150, 0, 1) ** 0.5
    left = _inside(x, y, (72, 4), (48 * narrow + 1e-6, 78 * narrow + 1e-6)) & (z > -95)
    right = _inside(x, y, (-74, 2), (58 * narrow + 1e-6, 84 * narrow + 1e-6)) & (z > -80)
    liver = _inside(x, y, (-60, 0), (75, 62)) & (z < -60 - 0.15 * np.abs(y))
    heart = _inside(x, y, (28, -32), (42, 34)) & (np.abs(z + 20) < 50)
    labels = np.zeros(points.shape[:-1], np.uint8)
    labels[left & ~heart] = LEFT_LUNG
    labels[right & ~liver & ~heart] = RIGHT_LUNG
    return labels


def ct_series(
    *,
    slices: int = 24,
    rows: int = 72,
    columns: int = 96,
    spacing_mm: tuple[float, float, float] = (5.0, 4.5, 4.0),
    position: str = "HFS",
    orientation: Sequence[float] | None = None,
    center_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
    tilt_degrees: float = 0.0,
    missing: Collection[int] = (),
    duplicate: Collection[int] = (),
    padding_outside_mm: float | None = None,
    seed: int = 0,
    **attributes: Any,
) -> list[Dataset]:
    """A chest CT as single-frame CT Image Storage instances with pixels, explicit little endian.

    Parameters
    ----------
    spacing_mm
        (slice, row, column).
    position
        Patient Position, one of :data:`ORIENTATIONS`; slices ascend along their normal.
    orientation
        Row and column direction cosines, when they are not those of an axial slice.
    center_mm
        LPS point in the middle of the stack.
    tilt_degrees
        Gantry tilt: each slice is shifted along its columns, as a tilted gantry's are.
    missing, duplicate
        Slice indices (in ascending order along the normal) to leave out, or to send twice under
        two SOP Instance UIDs.
    padding_outside_mm
        Radius beyond which pixels hold PixelPaddingValue, as outside a reconstruction circle.
    seed
        Decides noise and UIDs: the same arguments make the same series.
    attributes
        Set on every instance by keyword; None deletes.
    """
    cosines = np.array(ORIENTATIONS[position] if orientation is None else orientation, float)
    along_row, along_column = cosines[:3], cosines[3:]
    normal = np.cross(along_row, along_column)
    step = normal * spacing_mm[0]
    step = step + along_column * spacing_mm[0] * np.tan(np.radians(tilt_degrees))
    affine = np.stack([step, along_column * spacing_mm[1], along_row * spacing_mm[2]], axis=1)
    middle = (np.array([slices, rows, columns]) - 1) / 2
    origin = np.array(center_mm) - affine @ middle

    grid = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1)
    rng = np.random.default_rng(seed)
    uids = _Uids(f"phantom-{seed}-{position}-{center_mm}-{spacing_mm}")
    series = []
    for index in range(slices):
        first_pixel = origin + affine[:, 0] * index
        points = first_pixel + grid @ affine[:, 1:].T
        hu = chest_hu(points) + rng.normal(0, 8, (rows, columns))
        stored = np.rint(hu - RESCALE_INTERCEPT).astype(np.int16)
        if padding_outside_mm is not None:
            stored[np.linalg.norm((points - points.mean((0, 1))), axis=-1) > padding_outside_mm] = (
                PADDING
            )
        if index in missing:
            continue
        for copy in range(2 if index in duplicate else 1):
            ds = _instance(uids, index, copy, stored, cosines, first_pixel, spacing_mm)
            ds.PatientPosition = position
            if padding_outside_mm is not None:
                ds.PixelPaddingValue = PADDING
            for keyword, value in attributes.items():
                if value is None:
                    del ds[keyword]
                else:
                    setattr(ds, keyword, value)
            series.append(ds)
    return series


def chest_truth(series: list[Dataset]) -> npt.NDArray[np.uint8]:
    """Labels (slices, rows, columns) of the phantom's lungs, in the order of the given series."""
    planes = []
    for ds in series:
        cosines = np.array(ds.ImageOrientationPatient, float)
        grid = np.stack(
            np.meshgrid(np.arange(ds.Rows), np.arange(ds.Columns), indexing="ij"), axis=-1
        )
        down, across = (float(value) for value in ds.PixelSpacing)
        points = (
            np.array(ds.ImagePositionPatient, float)
            + grid[..., :1] * down * cosines[3:]
            + grid[..., 1:] * across * cosines[:3]
        )
        planes.append(chest_labels(points))
    return np.stack(planes)


class _Uids:
    """UIDs that depend on the series' arguments only."""

    def __init__(self, series: str) -> None:
        self._series = series

    def __call__(self, what: str) -> str:
        return str(generate_uid(entropy_srcs=[self._series, what]))


def dice(one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]) -> float:
    """How far two masks agree: 0 nowhere, 1 everywhere."""
    return 2 * float((one & other).sum()) / float(one.sum() + other.sum())


def _instance(
    uids: _Uids,
    index: int,
    copy: int,
    stored: npt.NDArray[np.int16],
    orientation: FloatArray,
    first_pixel: FloatArray,
    spacing_mm: tuple[float, float, float],
) -> Dataset:
    """One CT Image Storage instance (PS3.3 A.3) with its mandatory attributes."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.SOPClassUID = CTImageStorage
    ds.SOPInstanceUID = uids(f"instance {index} {copy}")
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.StudyDate, ds.StudyTime = "20200102", "101112"
    ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = "20200102"
    ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = "101314"
    ds.AccessionNumber = ""
    ds.Modality = "CT"
    ds.Manufacturer = "Phantom"
    ds.ReferringPhysicianName = ""
    ds.StudyDescription = "Chest phantom"
    ds.SeriesDescription = "Axial"
    ds.PatientName = "Phantom^Chest"
    ds.PatientID = "PHANTOM"
    ds.PatientBirthDate = ""
    ds.PatientSex = "O"
    ds.BodyPartExamined = "CHEST"
    ds.SliceThickness = spacing_mm[0]
    ds.KVP = 120
    ds.StudyInstanceUID = uids("study")
    ds.SeriesInstanceUID = uids("series")
    ds.StudyID = "1"
    ds.SeriesNumber = 1
    ds.AcquisitionNumber = 1
    ds.InstanceNumber = 1000 * copy + index + 1
    ds.ImagePositionPatient = [f"{value:.6g}" for value in first_pixel]
    ds.ImageOrientationPatient = [f"{value:g}" for value in orientation]
    ds.FrameOfReferenceUID = uids("frame of reference")
    ds.PositionReferenceIndicator = ""
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.Rows, ds.Columns = stored.shape
    ds.PixelSpacing = [spacing_mm[1], spacing_mm[2]]
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit = 15
    ds.PixelRepresentation = 1
    ds.WindowCenter, ds.WindowWidth = 40, 400
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = RESCALE_INTERCEPT, 1, "HU"
    ds.PixelData = stored.astype("<i2").tobytes()
    return ds


def _inside(
    x: FloatArray,
    y: FloatArray,
    center: tuple[float, float],
    radii: tuple[Any, Any],
) -> npt.NDArray[np.bool_]:
    inside: npt.NDArray[np.bool_] = ((x - center[0]) / radii[0]) ** 2 + (
        (y - center[1]) / radii[1]
    ) ** 2 <= 1
    return inside
