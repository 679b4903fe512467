"""Radiographs for tests: of any array, and of a chest, projected from the demo CT."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    generate_uid,
)
from scipy import ndimage

REPOSITORY = Path(__file__).parents[1]
DEMO_CT = sorted((REPOSITORY / "deploy" / "demo" / "ct").glob("*.dcm"))
SHARED = REPOSITORY.parent / "shared" / "data"
CHEST_CR = SHARED / "wg04_modalities" / "RG1_J2KI"
LEG_CR = SHARED / "wg04_modalities" / "RG3_J2KR"

SOP_CLASSES = {"CR": ComputedRadiographyImageStorage, "DX": DigitalXRayImageStorageForPresentation}

Shades = npt.NDArray[np.float64]


def radiograph(
    shades: Shades,
    *,
    modality: str = "CR",
    photometric: str = "MONOCHROME2",
    orientation: Sequence[str] | None = ("L", "F"),
    bits: int = 12,
    **attributes: Any,
) -> Dataset:
    """A radiograph that a display shows as ``shades``: 0 black to 1 white, (rows, columns).

    ``attributes`` set or, with None, remove header elements.
    """
    stored = np.rint(np.clip(shades, 0, 1) * (2**bits - 1))
    if photometric == "MONOCHROME1":
        stored = 2**bits - 1 - stored
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = SOP_CLASSES[modality]
    ds.SOPInstanceUID, ds.StudyInstanceUID, ds.SeriesInstanceUID = (generate_uid() for _ in "123")
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.Modality = modality
    ds.InstanceNumber = 1
    ds.ImageType = ["ORIGINAL", "PRIMARY"]
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "A^B", "1", "", "O"
    ds.StudyDate, ds.StudyTime, ds.StudyID = "20260101", "101112", "1"
    ds.AccessionNumber = ds.ReferringPhysicianName = ""
    ds.Manufacturer = "Detector maker"
    ds.SeriesNumber = 1
    ds.BodyPartExamined, ds.ViewPosition = "CHEST", "PA"
    if orientation is not None:
        ds.PatientOrientation = list(orientation)
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, photometric
    ds.Rows, ds.Columns = shades.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, bits, bits - 1
    ds.PixelRepresentation = 0
    ds.PixelData = stored.astype("<u2").tobytes()
    for keyword, value in attributes.items():
        if value is None:
            ds.pop(keyword, None)
        else:
            setattr(ds, keyword, value)
    return ds


def projected_chest(size: int = 512) -> Shades:
    """The demo CT as a frontal radiograph: head up, the patient's left on the right-hand side."""
    series = sorted((dcmread(file) for file in DEMO_CT), key=lambda ds: ds.ImagePositionPatient[2])
    hu = np.stack([ds.pixel_array * ds.RescaleSlope + ds.RescaleIntercept for ds in series[::-1]])
    thickness = np.clip(hu + 1000, 0, 2500).sum(axis=1)
    rows_mm = abs(series[1].ImagePositionPatient[2] - series[0].ImagePositionPatient[2])
    columns_mm = float(series[0].PixelSpacing[1])
    height = thickness.shape[0] * rows_mm / columns_mm
    scale = size / max(height, thickness.shape[1])
    factors = (height * scale / thickness.shape[0], scale)
    shades = ndimage.zoom(thickness.astype(float), factors, order=1)
    low, high = np.percentile(shades, (1, 99))
    return np.clip((shades - low) / (high - low), 0, 1)


def stored(plane: npt.NDArray[Any], toward: tuple[str, str]) -> npt.NDArray[Any]:
    """The plane, given with columns to the left and rows to the feet, as ``toward`` stores it."""
    columns, rows = toward if toward[0] in "LR" else toward[::-1]
    plane = plane[:, ::-1] if columns == "R" else plane
    plane = plane[::-1] if rows == "H" else plane
    return plane if toward[0] in "LR" else plane.T
