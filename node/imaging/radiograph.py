"""A projection radiograph as a display would show it, whatever detector it came from.

References: PS3.3 2026b C.8.1.2 (CR Image), C.8.11.3 (DX Image), C.11.1 (Modality LUT), C.11.2 (VOI
LUT), C.7.6.1.1.1 (Patient Orientation); PS3.4 2026b N.2 (greyscale transformation sequence).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut, apply_voi, apply_windowing

from node.imaging.pixels import padding_mask, require_grey_scale, stored_values
from node.imaging.resample import PlaneGrid
from node.sdk import Radiograph

MIN_SHADES = 16
"""A VOI transformation that leaves fewer is a mistake of the header, and is passed over."""


def radiograph_from(ds: Dataset) -> Radiograph:
    """Decode one radiograph and bring it to presentation values.

    Modality LUT, then the first VOI LUT or window (linear, linear exact or sigmoid), then the
    inversion of MONOCHROME1. A VOI transformation under which hardly any shades remain is ignored.

    Raises
    ------
    UnsupportedTransferSyntax
        Names the syntax.
    DamagedInstance
        PixelData is missing, short, or does not decode.
    UnsuitableInput
        Colour, floating-point or 32-bit pixels.
    """
    require_grey_scale(ds)
    stored = stored_values(ds)
    values = _with_voi(np.asarray(apply_modality_lut(stored, ds)), ds).astype(np.float32)
    if str(ds.get("PhotometricInterpretation", "")) == "MONOCHROME1":
        values = values.max() - values
    return Radiograph(
        array=values,
        padding=padding_mask(ds, stored),
        toward=frontal_orientation(ds),
        pixel_spacing_mm=pixel_spacing_mm(ds),
        sop_instance_uid=str(ds.SOPInstanceUID),
    )


def frontal_orientation(ds: Dataset) -> tuple[str, str] | None:
    """PatientOrientation of a frontal view: to where columns, then rows, ascend.

    The first letter of each value counts: in ``LF`` it is the nearest axis. None where there is
    none, or where the two do not span a frontal plane.
    """
    values = ds.get("PatientOrientation") or ()
    letters = [str(value)[:1].upper() for value in values if value]
    if len(letters) != 2 or "".join(sorted(letters)) not in ("FL", "FR", "HL", "HR"):
        return None
    return letters[0], letters[1]


def pixel_spacing_mm(ds: Dataset) -> tuple[float, float] | None:
    """(row, column) spacing: PixelSpacing, else ImagerPixelSpacing; None unless both are positive.

    Either is of a projection, the second at the detector: lengths in the patient are shorter.
    """
    return spacing_of(ds, "PixelSpacing") or spacing_of(ds, "ImagerPixelSpacing")


def spacing_of(ds: Dataset, keyword: str) -> tuple[float, float] | None:
    """Two positive numbers of one attribute; None where it holds something else."""
    try:
        row, column = (float(value) for value in ds.get(keyword) or ())
    except (TypeError, ValueError):
        return None
    return (row, column) if min(row, column) > 0 and np.isfinite(row + column) else None


@dataclass(frozen=True)
class Turn:
    """Turns an image as it is displayed by convention, and back again.

    By convention the patient's left is on the right-hand side and the head is up: ``L\\F``.
    """

    swaps_axes: bool = False
    flips_rows: bool = False
    flips_columns: bool = False

    @classmethod
    def of(cls, toward: tuple[str, str] | None) -> Turn:
        """``toward`` as in :class:`Radiograph`; an image that does not say is left as it is."""
        if toward is None:
            return cls()
        swaps_axes = toward[0] in "HF"
        columns, rows = reversed(toward) if swaps_axes else toward
        return cls(swaps_axes, flips_rows=rows == "H", flips_columns=columns == "R")

    def apply(self, plane: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A view of (rows, columns), turned."""
        turned = plane.T if self.swaps_axes else plane
        return turned[self._reversed()]

    def undo(self, plane: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Inverse of :meth:`apply`."""
        back = plane[self._reversed()]
        return back.T if self.swaps_axes else back

    def _reversed(self) -> tuple[slice, slice]:
        return (
            slice(None, None, -1 if self.flips_rows else 1),
            slice(None, None, -1 if self.flips_columns else 1),
        )


def square_grid(
    shape: tuple[int, int], pixel_spacing_mm: tuple[float, float] | None, size: int
) -> PlaneGrid:
    """The network's square over the whole image, its aspect kept, centred.

    Only the ratio of both spacings matters here; without them pixels are square.
    """
    row_mm, column_mm = pixel_spacing_mm or (1.0, 1.0)
    extents_mm = shape[0] * row_mm, shape[1] * column_mm
    center = ((shape[0] - 1) / 2, (shape[1] - 1) / 2)
    return PlaneGrid(size, max(extents_mm) / size, shape, (row_mm, column_mm), center)


def normalised(
    plane: npt.NDArray[np.float32],
    padding: npt.NDArray[np.bool_] | None,
    percentiles: tuple[float, float],
) -> npt.NDArray[np.float32]:
    """Map the percentiles of the image's own pixels to [0, 1] and clip; padding becomes 0."""
    image = plane if padding is None else plane[~padding]
    if not image.size:
        return np.zeros_like(plane)
    # Some hundred thousand pixels say the same as twenty million; an odd step meets all columns.
    sample = image.ravel()[:: image.size // 2**18 | 1]
    low, high = np.percentile(sample, percentiles)
    result: npt.NDArray[np.float32] = np.clip(
        (plane - np.float32(low)) / np.float32(max(high - low, 1e-6)), 0, 1
    )
    if padding is not None:
        result[padding] = 0
    return result


def _with_voi(values: npt.NDArray[Any], ds: Dataset) -> npt.NDArray[Any]:
    """The first VOI LUT or, without one, the first window, unless it spoils the image."""
    try:
        if "VOILUTSequence" in ds:
            shown = apply_voi(np.rint(values).astype(np.int64), ds, index=0)
        else:
            shown = apply_windowing(values, ds, index=0)
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        NotImplementedError,
    ):
        # The header's window is no window; what the detector measured is still an image.
        return values
    shown = np.asarray(shown)
    step = max(1, min(shown.shape) // 256)  # enough to count shades, in no time
    return shown if len(np.unique(shown[::step, ::step])) >= MIN_SHADES else values
