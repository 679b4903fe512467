"""Slabs of neighbouring slices for a 2.5-D network, in batches along the slice axis."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt


def context_offset(slice_spacing_mm: float, context_mm: float) -> int:
    """How many slices away the neighbour about ``context_mm`` distant lies; at least one."""
    return max(1, round(context_mm / slice_spacing_mm))


def slab_indices(
    count: int, channels: int, offset: int, batch: int
) -> Iterator[npt.NDArray[np.intp]]:
    """For every slice itself and its neighbours, in batches.

    Parameters
    ----------
    count
        Slices of the volume.
    channels
        Odd; the slice itself is the middle one.
    offset
        Slices between neighbouring channels. Beyond the ends the last slice repeats.
    batch
        Slices per batch; the last one may be smaller.

    Yields
    ------
    numpy.ndarray
        Slice indices, shape (slices of the batch, channels).
    """
    around = (np.arange(channels) - channels // 2) * offset
    for start in range(0, count, batch):
        middle = np.arange(start, min(start + batch, count))[:, None]
        yield np.clip(middle + around, 0, count - 1)
