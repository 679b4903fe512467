"""A test-time choice of the manifest: look at the mirrored image too, and take the mean."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from node.runtimes import Engine, Runtime, Scores


class Mirrored:
    """A runtime around a runtime, at twice its cost.

    ``swaps`` are pairs of class numbers that a mirror exchanges, such as left and right lung.
    """

    def __init__(self, runtime: Runtime, classes: int, swaps: Sequence[tuple[int, int]]) -> None:
        self._runtime = runtime
        self._class_in_mirror = list(range(classes))
        for one, other in swaps:
            self._class_in_mirror[one], self._class_in_mirror[other] = other, one

    @property
    def engine(self) -> Engine:
        """What computes."""
        return self._runtime.engine

    @property
    def batch_slices(self) -> int:
        """See :class:`node.runtimes.Runtime`."""
        return self._runtime.batch_slices

    def scores(self, slabs: Iterable[Scores]) -> Iterator[Scores]:
        """See :class:`node.runtimes.Runtime`; the mirror exchanges the columns."""

        def both() -> Iterator[Scores]:
            for slab in slabs:
                yield slab
                yield np.ascontiguousarray(slab[..., ::-1])

        scores = self._runtime.scores(both())
        for straight, mirrored in zip(scores, scores, strict=True):
            mean: Scores = (straight + mirrored[:, self._class_in_mirror, :, ::-1]) / np.float32(2)
            yield mean
