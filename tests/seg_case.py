"""CT headers and a label map of both lungs, and how DCMTK reads what is made of them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage

from node.manifest import Code, Segment
from node.results.seg import Algorithm
from node.results.uids import ResultIdentity

ANATOMY = Code(value="123037004", scheme="SCT", meaning="Anatomical Structure")


def lung(number: int, side: str, code: str, rgb: tuple[int, int, int]) -> Segment:
    meaning = f"{side} lung"
    return Segment(
        number=number,
        label=meaning,
        category=ANATOMY,
        type=Code(value=code, scheme="SCT", meaning=meaning),
        rgb=rgb,
    )


SEGMENTS = (
    lung(1, "Left", "44029006", (255, 140, 0)),
    lung(2, "Right", "3341006", (0, 200, 255)),
)
ALGORITHM = Algorithm(name="ct_lungs", version="1.2.0", digest="ab" * 32)
IDENTITY = ResultIdentity.for_job(
    "a job's key",
    series_number=9001,
    series_description="ct_lungs 1.2.0",
    created=datetime(2026, 11, 3, 12, 30, 1),
    software_version="0.1.0",
)

# Row and column direction cosines in patient coordinates (LPS).
ORIENTATIONS = {
    "supine": (1, 0, 0, 0, 1, 0),
    "prone": (-1, 0, 0, 0, -1, 0),
    "decubitus": (0, -1, 0, 1, 0, 0),
    "coronal": (1, 0, 0, 0, 0, -1),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "oblique": (0.8, 0.6, 0.0, -0.48, 0.64, 0.6),
}


def series(
    orientation: Sequence[float] = ORIENTATIONS["supine"],
    *,
    slices: int = 6,
    rows: int = 16,
    columns: int = 24,
    step_mm: float = 2.5,
) -> list[Dataset]:
    """De-identified CT headers, ``step_mm`` apart along (negative: against) the normal."""
    normal = np.cross(orientation[:3], orientation[3:])
    headers = []
    for index in range(slices):
        header = Dataset()
        header.SpecificCharacterSet = "ISO_IR 100"
        header.SOPClassUID = CTImageStorage
        header.SOPInstanceUID = f"2.25.{1000 + index}"
        header.StudyInstanceUID = "2.25.1"
        header.SeriesInstanceUID = "2.25.2"
        header.FrameOfReferenceUID = "2.25.3"
        header.PatientName = "PSEUDO^ONE"
        header.PatientID = "PSEUDO1"
        header.PatientBirthDate = ""
        header.PatientSex = "O"
        header.StudyDate = "20010203"
        header.StudyTime = "101112"
        header.StudyID = "S1"
        header.AccessionNumber = ""
        header.ReferringPhysicianName = ""
        header.PositionReferenceIndicator = ""
        header.Manufacturer = "Scanner maker"
        header.Modality = "CT"
        header.BodyPartExamined = "CHEST"
        header.InstanceNumber = index + 1
        header.SliceThickness = 3
        header.Rows, header.Columns = rows, columns
        header.PixelSpacing = [0.75, 0.5]
        header.ImageOrientationPatient = list(orientation)
        corner = np.array([-40.0, -30.0, 100.0]) + index * step_mm * normal
        header.ImagePositionPatient = [round(float(value), 6) for value in corner]
        headers.append(header)
    return headers


def labels_for(headers: Sequence[Dataset], seed: int = 1) -> np.ndarray:
    """Another mask on every slice; slice 0 is empty and the last has no segment 2."""
    shape = (len(headers), headers[0].Rows, headers[0].Columns)
    labels = np.random.default_rng(seed).integers(0, 3, shape, dtype=np.uint8)
    labels[0] = 0
    labels[-1][labels[-1] == 2] = 0
    return labels


def dcmtk_json(path: Path) -> dict[str, Any]:
    """The object as DCMTK's dcm2json reads it."""
    done = subprocess.run(
        ["/usr/bin/dcm2json", str(path)], capture_output=True, check=True, timeout=60
    )
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def swap_references(made: Dataset) -> None:
    """The first and the last frame each name the other's source."""
    first, last = (made.PerFrameFunctionalGroupsSequence[index] for index in (0, -1))
    first.DerivationImageSequence, last.DerivationImageSequence = (
        last.DerivationImageSequence,
        first.DerivationImageSequence,
    )
