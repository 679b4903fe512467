"""Slabs of neighbouring slices for a 2.5-D network, in batches along the slice axis."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt


def context_offset(slice_spacing_mm: float, context_mm: float) -> int:
    """How many slices away the neighbour about ``context_mm`` distant lies; at least one."""
    return max(1, round(context_mm / slice_spacing_mm))


def slabs(
    planes: npt.NDArray[np.float32], channels: int, offset: int, batch: int
) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
    """Every slice with its neighbours as channels.

    Parameters
    ----------
    planes
        Shape (slices, rows, columns).
    channels
        Odd; the slice itself is the middle one.
    offset
        Slices between neighbouring channels. Beyond the ends the last slice repeats.
    batch
        Slices per slab batch.

    Yields
    ------
    tuple
        The slices covered, and float32 of shape (slices, channels, rows, columns).
    """
    count = len(planes)
    around = (np.arange(channels) - channels // 2) * offset
    for start in range(0, count, batch):
        stop = min(start + batch, count)
        indices = np.arange(start, stop)[:, None] + around
        yield slice(start, stop), planes[np.clip(indices, 0, count - 1)]
