"""Series in the positions that go wrong, each with a label map whose place in mm is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import MRImageStorage

from node.manifest import Code, Segment
from node.results.seg import Algorithm, encode_labelmap, encode_seg
from node.results.uids import ResultIdentity
from tests.part10 import part10
from tests.phantoms import chest_truth, ct_series

DECUBITUS_MR = (
    Path(__file__).resolve().parents[3] / "shared" / "data" / "orientation_dcm_qa_decubitus"
)
TILT_DEGREES = 17.0
SAGITTAL = (0, 1, 0, 0, 0, -1)
AS_MR = {"SOPClassUID": MRImageStorage, "Modality": "MR", "KVP": None, "RescaleType": None}
DESCRIPTION = "ct_lungs 1.2.0"

ANATOMY = Code(value="123037004", scheme="SCT", meaning="Anatomical Structure")
ALGORITHM = Algorithm(name="ct_lungs", version="1.2.0", digest="ab" * 32)


def _lung(number: int, side: str, code: str, rgb: tuple[int, int, int]) -> Segment:
    kind = Code(value=code, scheme="SCT", meaning=f"{side} lung")
    return Segment(number=number, label=kind.meaning, category=ANATOMY, type=kind, rgb=rgb)


#: A warm and a cold colour, which stay apart when they are mixed with any grey.
SEGMENTS = (
    _lung(1, "Left", "44029006", (255, 140, 0)),
    _lung(2, "Right", "3341006", (0, 200, 255)),
)


@dataclass(frozen=True)
class Case:
    """Source instances with pixels, and ``labels`` (slices, rows, columns) in their order."""

    source: Sequence[Dataset]
    labels: npt.NDArray[np.uint8]
    encode: Callable[..., Dataset] = encode_seg

    def segmentation(self) -> Dataset:
        """What the node returns for it."""
        identity = ResultIdentity.for_job(
            self.source[0].SeriesInstanceUID,
            series_number=9001,
            series_description=DESCRIPTION,
            created=datetime(2026, 11, 3, 12, 30, 1),
            software_version="0.1.0",
        )
        return self.encode(self.labels, self.source, SEGMENTS, ALGORITHM, identity)

    def telling_slices(self) -> list[int]:
        """One slice through each segment: low in the first, high in the second."""
        shares = {1: 0.2, 2: 0.7}
        return [
            int(np.quantile(np.flatnonzero((self.labels == number).any(axis=(1, 2))), share))
            for number, share in shares.items()
        ]


def phantom(columns: int = 192, **keywords: Any) -> Case:
    """The chest phantom, small enough to be rendered without a GPU."""
    source = ct_series(
        rows=144, columns=columns, spacing_mm=(8.0, 2.25, 2.0), slices=24, **keywords
    )
    for instance in source:
        instance.file_meta.MediaStorageSOPClassUID = instance.SOPClassUID
    return Case(source, chest_truth(source))


def tilted_gantry() -> Case:
    """Slices leaned about the patient's left-right axis while the table moves along z."""
    lean = np.radians(TILT_DEGREES)
    leaned = (1.0, 0.0, 0.0, 0.0, float(np.cos(lean)), float(np.sin(lean)))
    return phantom(orientation=leaned, tilt_degrees=TILT_DEGREES, seed=3)


def label_map() -> Case:
    """What a destination with ``segmentation_type = "auto"`` gets of 189 columns."""
    return replace(phantom(columns=189, seed=6), encode=encode_labelmap)


def decubitus_mr(position: str) -> Case:
    """Two neighbouring slices of a real sagittal MR; its bright tissue, cut in unlike parts."""
    folder = DECUBITUS_MR / position
    if not folder.is_dir():
        pytest.skip("no ../shared/data beside this clone")
    source = sorted(
        (dcmread(path) for path in folder.glob("*.dcm")), key=lambda ds: int(ds.InstanceNumber)
    )
    intensities = np.stack([ds.pixel_array for ds in source])
    bright = intensities > np.quantile(intensities, 0.8)
    _, rows, columns = np.indices(intensities.shape)
    above = rows < np.median(rows[bright])
    left = columns < np.median(columns[bright])
    labels = np.where(bright & above, 1, 0) + np.where(bright & ~above & left, 2, 0)
    labels[1, :, ::16] = 0  # the two slices must not be taken for each other
    return Case(source, labels.astype(np.uint8))


CASES: dict[str, Callable[[], Case]] = {
    "axial CT, head first": lambda: phantom(position="HFS", seed=1),
    "axial CT, feet first": lambda: phantom(position="FFS", seed=2),
    "axial CT, tilted gantry": tilted_gantry,
    "axial CT, 189 columns, as a label map": label_map,
    "sagittal MR": lambda: phantom(orientation=SAGITTAL, seed=4, **AS_MR),
    "axial MR, right decubitus": lambda: phantom(position="HFDR", seed=5, **AS_MR),
    "real sagittal MR, supine": lambda: decubitus_mr("HFS"),
    "real sagittal MR, left decubitus": lambda: decubitus_mr("HFDL"),
    "real sagittal MR, right decubitus": lambda: decubitus_mr("HFDR"),
}


def on_the_wrong_slices(segmentation: Dataset) -> Dataset:
    """The same positions and pixels, each frame derived from another frame's source instance."""
    moved = dcmread(BytesIO(part10(segmentation)))
    frames = list(moved.PerFrameFunctionalGroupsSequence)
    derivations = [frame.DerivationImageSequence for frame in frames]
    for frame, derivation in zip(frames, derivations[::-1], strict=True):
        frame.DerivationImageSequence = derivation
    return moved
