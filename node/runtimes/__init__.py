"""What runs a network: slabs of slices in, class scores out.

Two runtimes stand behind one interface: OpenVINO on processors (``openvino_cpu``), PyTorch on GPUs
and as the fallback (``pytorch``). An export for OpenVINO is made from the verified safetensors and
checked against PyTorch (``exports``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

Precision = Literal["f32", "bf16", "f16"]
Scores = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Engine:
    """Which runtime computes, where, and how exactly: recorded with every result."""

    name: Literal["openvino", "torch"]
    version: str
    device: str
    precision: Precision

    def __str__(self) -> str:
        return f"{self.name} {self.version}, {self.device}, {self.precision}"


class Runtime(Protocol):
    """A network that is ready to run. Not for sharing between threads."""

    @property
    def engine(self) -> Engine:
        """What computes."""

    @property
    def batch_slices(self) -> int:
        """Slices per slab batch that suit it best; any number gives the same labels."""

    def scores(self, slabs: Iterable[Scores]) -> Iterator[Scores]:
        """Logits of each batch of slabs, in order.

        Takes the next batches from ``slabs`` while earlier ones are still computed, so that
        whatever makes them (fetching, decoding, resampling) overlaps with the network.

        Parameters
        ----------
        slabs
            float32, shape (slices, channels, rows, columns), in [0, 1].

        Yields
        ------
        numpy.ndarray
            float32, shape (slices, classes, rows, columns).
        """
