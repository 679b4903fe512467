"""Fields over an image that variation, drawing and stress tests are made of."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch.nn import functional

Image = npt.NDArray[np.float32]
Random = np.random.Generator


def grid(shape: tuple[int, ...]) -> tuple[Image, Image]:
    """Row and column coordinates from -1 to 1."""
    rows, columns = np.meshgrid(
        *(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij"
    )
    return rows, columns


def step(value: npt.NDArray[np.floating], steepness: float) -> Image:
    """From 0 below zero to 1 above, softly."""
    return (1 / (1 + np.exp(-np.clip(steepness * value, -30, 30)))).astype(np.float32)


def cylinder(across: Image, radius: npt.ArrayLike) -> Image:
    """Thickness of a cylinder, 1 in its middle."""
    return np.sqrt(np.maximum(1 - (across / radius) ** 2, 0)).astype(np.float32)


def smooth(shape: tuple[int, ...], cells: int, rng: Random) -> Image:
    """Smooth noise of about unit variance, with ``cells`` knots along each axis."""
    knots = torch.from_numpy(rng.standard_normal((1, 1, cells, cells), dtype=np.float32))
    return functional.interpolate(knots, size=shape, mode="bilinear", align_corners=True)[
        0, 0
    ].numpy()


def blurred(image: Image, sigma: float) -> Image:
    """A wide Gaussian, on a coarser grid: the same for less."""
    coarse = functional.avg_pool2d(torch.from_numpy(image)[None, None], int(sigma / 2))
    soft = torch.from_numpy(
        ndimage.gaussian_filter(coarse[0, 0].numpy(), sigma / int(sigma / 2), mode="nearest")
    )
    return functional.interpolate(
        soft[None, None], size=image.shape, mode="bilinear", align_corners=False
    )[0, 0].numpy()


def spread(image: Image, low: float, high: float) -> Image:
    """Percentiles ``low`` and ``high`` to 0 and 1, clipped."""
    first, last = np.percentile(image[::3, ::3], (low, high))
    return np.clip((image - first) / max(last - first, 1e-3), 0, 1).astype(np.float32)
