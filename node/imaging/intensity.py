"""Hounsfield units to what a network reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def window(values: npt.NDArray[Any], low: float, high: float) -> npt.NDArray[np.float32]:
    """Map [low, high] to [0, 1] and clip what lies outside; any shape."""
    scaled = (values.astype(np.float32) - np.float32(low)) / np.float32(high - low)
    return np.clip(scaled, 0.0, 1.0, out=scaled)
