"""What a label map amounts to, per segment, as plain values for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from node.sdk import Radiograph, Segment, Volume

Labels = npt.NDArray[np.uint8]


def measured(
    case: Volume | Radiograph, labels: Labels, segments: Sequence[Segment]
) -> list[dict[str, Any]]:
    """One entry for each segment, found or not. ``labels`` has the shape (slices, rows, columns).

    Of a volume: voxels, millilitres and the slices that it spans (indices in slice order). Of a
    radiograph: pixels, their share of the image, and square millimetres in the plane of the stated
    pixel spacing, which is not the patient's; None without one.
    """
    entries = []
    for segment in segments:
        found = labels == segment.number
        entry = (
            _of_radiograph(case, found) if isinstance(case, Radiograph) else _of_volume(case, found)
        )
        entries.append({"number": segment.number, "label": segment.label, **entry})
    return entries


def _of_volume(volume: Volume, found: npt.NDArray[np.bool_]) -> dict[str, Any]:
    per_slice = found.sum(axis=(1, 2))
    voxels = int(per_slice.sum())
    slices = np.flatnonzero(per_slice)
    return {
        "voxels": voxels,
        "volume_ml": round(voxels * volume.voxel_ml, 3),
        "first_slice": int(slices[0]) if voxels else None,
        "last_slice": int(slices[-1]) if voxels else None,
    }


def _of_radiograph(radiograph: Radiograph, found: npt.NDArray[np.bool_]) -> dict[str, Any]:
    pixels = int(found.sum())
    area_mm2 = None
    if radiograph.pixel_spacing_mm is not None:
        row_mm, column_mm = radiograph.pixel_spacing_mm
        area_mm2 = round(pixels * row_mm * column_mm, 1)
    return {"pixels": pixels, "share": round(pixels / found.size, 4), "area_mm2": area_mm2}
