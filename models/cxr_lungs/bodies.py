"""Radiographs of what is not a chest, most of them drawn: in them nothing is to be found."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from .fields import Image, Random, cylinder, grid, smooth, spread, step


def drawn_without_lung(size: int, rng: Random) -> Image:
    """A limb, a hand, a breast, rings as of skull or pelvis, or a texture: what is not a chest."""
    draw = (_limb, _limb, _hand, _breast, _rings, _texture)[int(rng.integers(6))]
    rows, columns = grid((size, size))
    # Limbs lie along the image, more or less, and shutters along the limb.
    along_the_image = draw is _limb and rng.random() < 0.6
    angle = rng.normal(0, 0.15) if along_the_image else rng.uniform(-np.pi, np.pi)
    across = columns * np.cos(angle) + rows * np.sin(angle) + rng.uniform(-0.2, 0.2)
    along = rows * np.cos(angle) - columns * np.sin(angle)
    image = draw(across, along, rng)
    for cells in (8, 20, 50):
        image = image + np.float32(0.06 * rng.random()) * smooth(image.shape, cells, rng)
    image = spread(image, 0, 100)
    if rng.random() < 0.35:
        shutter = columns if rng.random() < 0.5 else across
        image = np.where(np.abs(shutter) > rng.uniform(0.3, 0.9), np.float32(1), image)
    return image.astype(np.float32)


def beside_the_lungs(image: Image, lungs: npt.NDArray[np.bool_], rng: Random) -> Image | None:
    """A piece of a chest radiograph without lung, enlarged: air, arm, neck, abdomen.

    None where the pieces tried all show lung. ``lungs`` has the image's shape.
    """
    size = image.shape[0]
    for _ in range(8):
        side = int(size * rng.uniform(0.2, 0.5))
        row, column = rng.integers(0, size - side, 2)
        place = (slice(row, row + side), slice(column, column + side))
        if np.ptp(image[place]) > 0.2 and lungs[place].mean() < 0.01:
            piece = torch.from_numpy(np.ascontiguousarray(image[place]))[None, None]
            return functional.interpolate(
                piece, size=image.shape, mode="bilinear", align_corners=False
            )[0, 0].numpy()
    return None


def _limb(across: Image, along: Image, rng: Random) -> Image:
    bent = across + 0.2 * rng.uniform(0, 0.25) * np.sin(along * rng.uniform(1, 4))
    radius = rng.uniform(0.15, 0.75)
    image = cylinder(bent, radius * (1 + rng.uniform(0, 0.1) * np.sin(3 * along)))
    image = image * rng.uniform(0.3, 0.6)
    for _ in range(int(rng.integers(1, 3))):
        center, bone = rng.uniform(-0.4, 0.4) * radius, radius * rng.uniform(0.12, 0.35)
        marrow = rng.uniform(0.55, 0.9) * cylinder(bent - center, bone * rng.uniform(0.6, 0.85))
        image = image + rng.uniform(0.4, 1.0) * (cylinder(bent - center, bone) - marrow)
    if rng.random() < 0.6:
        joint = along - rng.uniform(-0.5, 0.5)
        swollen = np.exp(-((joint / rng.uniform(0.1, 0.3)) ** 2))
        image = image + rng.uniform(0.2, 0.6) * swollen * cylinder(bent, radius)
        image = image * (1 - 0.5 * np.exp(-((joint / 0.015) ** 2)))
    return np.asarray(image, np.float32)


def _hand(across: Image, along: Image, rng: Random) -> Image:
    palm = rng.uniform(0.25, 0.45)
    image = 0.5 * step(palm - np.hypot(across, along), 20)
    spread, first = rng.uniform(0.2, 0.45), rng.uniform(-0.5, 0.5)
    for finger in range(-2, 3):
        angle = first + finger * spread
        beside = across * np.cos(angle) + along * np.sin(angle)
        forward = along * np.cos(angle) - across * np.sin(angle)
        shown = step(forward, 30) * step(rng.uniform(0.6, 0.95) - forward, 30)
        bone = 0.5 * cylinder(beside, 0.045) * (0.6 + 0.4 * np.cos(forward * 16))
        image = image + shown * (0.35 * cylinder(beside, 0.1) + bone)
    return np.asarray(image, np.float32)


def _breast(across: Image, along: Image, rng: Random) -> Image:
    """Half an ellipse from one edge, with glands in it, before black air."""
    away = np.hypot((across + 1) / rng.uniform(0.7, 1.5), along / rng.uniform(0.5, 1.0))
    glands = 0.5 + 0.2 * smooth(across.shape, 12, rng) + 0.1 * smooth(across.shape, 40, rng)
    return np.asarray(step(1 - away, rng.uniform(8, 40)) * glands, np.float32)


def _rings(across: Image, along: Image, rng: Random) -> Image:
    image = np.zeros_like(across)
    for _ in range(int(rng.integers(2, 6))):
        center, radius = rng.uniform(-0.3, 0.3, 2), rng.uniform(0.15, 0.8, 2)
        away = np.hypot((across - center[0]) / radius[0], (along - center[1]) / radius[1])
        rim = np.exp(-(((away - 1) / rng.uniform(0.03, 0.1)) ** 2))
        image += rng.uniform(0.2, 0.6) * rim + rng.uniform(-0.15, 0.4) * step(1 - away, 15)
    return image


def _texture(across: Image, along: Image, rng: Random) -> Image:
    image = np.zeros_like(across)
    for cells in (3, 6, 12, 24):
        image += np.float32(rng.uniform(0, 0.5)) * smooth(image.shape, cells, rng)
    if rng.random() < 0.5:
        away = np.hypot(across, along * rng.uniform(0.6, 1.4))
        image *= step(rng.uniform(0.4, 1.0) - away, rng.uniform(4, 30))
    return image
