"""Everything that a model may use of the node, and nothing else.

A model is a folder below ``models/`` with ``model.toml`` (:mod:`node.manifest`). What it is given
and what it gives back is here: arrays with their place in the patient. Nothing imports torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from node.manifest import NetworkManifest, Preprocessing, RadiographPreprocessing

__all__ = [
    "NetworkManifest",
    "Preprocessing",
    "RadiographPreprocessing",
    "LabelMap",
    "Progress",
    "Radiograph",
    "Volume",
]

Progress = Callable[[float], None]
"""Called with the share done, 0 to 1."""


@dataclass(frozen=True)
class Volume:
    """Stacked slices.

    Attributes
    ----------
    array
        int16, shape (slices, rows, columns); Hounsfield units for CT.
    affine
        4x4 float64, homogeneous index (slice, row, column) to patient LPS, millimetres.
    spacing_mm
        Distance of voxel centres along (slice, row, column).
    sop_instance_uids
        One per slice, in slice order.
    """

    array: npt.NDArray[np.int16]
    affine: npt.NDArray[np.float64]
    spacing_mm: tuple[float, float, float]
    sop_instance_uids: tuple[str, ...]

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel."""
        slices, rows, columns = self.spacing_mm
        return slices * rows * columns / 1000

    @property
    def shape(self) -> tuple[int, int, int]:
        """(slices, rows, columns)."""
        slices, rows, columns = self.array.shape
        return slices, rows, columns

    def slices(self, start: int, stop: int) -> npt.NDArray[np.int16]:
        """Slices ``start`` to ``stop``."""
        return self.array[start:stop]

    def complete(self) -> Self:
        """Itself: all slices are here."""
        return self


@dataclass(frozen=True)
class Radiograph:
    """One projection image, as a display would show it.

    Attributes
    ----------
    array
        float32, shape (rows, columns), brighter is larger: after Modality LUT, VOI LUT and the
        inversion of MONOCHROME1. The scale is the detector's.
    padding
        Where pixels are no image (PixelPaddingValue), shape (rows, columns); None for nowhere.
    toward
        To where in the patient columns and rows ascend: two of the letters L, R, H, F, one of each
        pair (PatientOrientation, PS3.3 C.7.6.1.1.1). None where the image does not say.
    pixel_spacing_mm
        (row, column) spacing of pixel centres, in the plane that the image states; None if it
        states none.
    sop_instance_uid
        Of the image.
    """

    array: npt.NDArray[np.float32]
    padding: npt.NDArray[np.bool_] | None
    toward: tuple[str, str] | None
    pixel_spacing_mm: tuple[float, float] | None
    sop_instance_uid: str


@dataclass(frozen=True)
class LabelMap:
    """What a model found.

    Attributes
    ----------
    array
        uint8, shape (slices, rows, columns) of the source volume, or (1, rows, columns) of the
        radiograph; 0 is background, else a :attr:`node.manifest.Segment.number`.
    sop_instance_uids
        The source instance of each slice, in slice order.
    """

    array: npt.NDArray[np.uint8]
    sop_instance_uids: tuple[str, ...]
