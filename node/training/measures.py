"""How well one label map repeats another: overlap, and the distance of their surfaces."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Mask = npt.NDArray[np.bool_]


def dice(found: Mask, truth: Mask) -> float:
    """Twice the overlap over the sum of both volumes, any shape; NaN where both are empty."""
    total = int(found.sum()) + int(truth.sum())
    return 2 * int((found & truth).sum()) / total if total else math.nan


def surface_distance_p95_mm(found: Mask, truth: Mask, spacing_mm: Sequence[float]) -> float:
    """95th percentile of the distance between both surfaces, the worse of the two directions.

    Masks (slices, rows, columns), spacing in the same order. NaN where either is empty: there is
    no surface to be far from.
    """
    if not found.any() or not truth.any():
        return math.nan
    import torch
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance

    box = ndimage.find_objects((found | truth).astype(np.uint8))[0]
    # A voxel of margin, so that what touches the box's side still has a surface there.
    one, other = (torch.from_numpy(np.pad(mask[box], 1))[None, None] for mask in (found, truth))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of MONAI about its own call
        distance = compute_hausdorff_distance(
            one, other, include_background=True, percentile=95, spacing=list(spacing_mm)
        )
    return float(distance.item())


def number_shown(value: float, digits: int) -> str:
    """A measure in a table; a dash where it is NaN."""
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
