"""Planes larger than the network sees: tiles that overlap, their scores blended."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from node.errors import ModelFault
from node.runtimes import Engine, Runtime, Scores

OVERLAP = 0.5
"""Of a tile with the next, as nnU-Net does (Isensee 2021), whose Gaussian blends here too."""
_SIGMA = 1 / 8
"""Of the tile's size: what a network says of the edge of its view counts least."""
_FAINTEST = 1e-3


class Tiled:
    """A runtime around a runtime: whole planes in, whole planes out.

    Every slice is cut in the same tiles, each batch of slices goes through the network tile by
    tile, and the sum runs in one order: the batch's size does not change the scores.
    """

    def __init__(self, runtime: Runtime, tile: int, plane: int) -> None:
        """``tile``: rows and columns that the network sees; ``plane``: those of the slabs."""
        self._runtime = runtime
        self._tile = tile
        self._plane = plane
        self._corners = [(row, column) for row in starts(plane, tile)
                         for column in starts(plane, tile)]  # fmt: skip
        along = np.exp(-0.5 * ((np.arange(tile) - (tile - 1) / 2) / (tile * _SIGMA)) ** 2)
        weight = np.maximum(np.outer(along, along), _FAINTEST)
        self._weight: npt.NDArray[np.float32] = weight.astype(np.float32)

    @property
    def engine(self) -> Engine:
        """What computes."""
        return self._runtime.engine

    @property
    def batch_slices(self) -> int:
        """See :class:`node.runtimes.Runtime`."""
        return self._runtime.batch_slices

    def scores(self, slabs: Iterable[Scores]) -> Iterator[Scores]:
        """See :class:`node.runtimes.Runtime`; the network looks at each tile.

        Raises
        ------
        ModelFault
            The network returns another size than it is given.
        """
        size = self._tile

        def tiles() -> Iterator[Scores]:
            for slab in slabs:
                for row, column in self._corners:
                    yield np.ascontiguousarray(slab[..., row : row + size, column : column + size])

        scores = self._runtime.scores(tiles())
        for first in scores:
            if first.shape[2:] != (size, size):
                raise ModelFault(
                    f"The network returns {first.shape[2:]} for tiles of {size} x {size}"
                )
            blended = np.zeros((*first.shape[:2], self._plane, self._plane), np.float32)
            total = np.zeros((self._plane, self._plane), np.float32)
            for place, (row, column) in enumerate(self._corners):
                one = first if place == 0 else next(scores)
                window = (slice(row, row + size), slice(column, column + size))
                blended[..., *window] += one * self._weight
                total[window] += self._weight
            blended /= total
            yield blended


def starts(plane: int, tile: int) -> list[int]:
    """Where tiles begin along one side: evenly, from edge to edge, overlapping by half or more."""
    steps = math.ceil((plane - tile) / (tile * (1 - OVERLAP)))
    return [round(place * (plane - tile) / steps) for place in range(steps + 1)] if steps else [0]
