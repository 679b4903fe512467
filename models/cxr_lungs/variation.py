"""Radiographs as other detectors, positions and patients would show them.

138 images of one clinic and one detector exist. What they do not show is made here: opacities and
effusions that leave the lung's outline to be guessed, other tone curves and edge enhancement, tilt,
other aspects and mirrored images, collimation, markers, tubes and devices, noise.

An image is float32, shape (rows, columns), brighter is denser; labels are uint8 of the same shape,
told apart by the side of the display: LEFT lies on its right-hand side.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch.nn import functional

from .fields import Image, Random, blurred, grid, smooth, spread, step

LEFT, RIGHT = 1, 2

Labels = npt.NDArray[np.uint8]

CHANCES = {
    "nothing but position": 0.3,
    "stomach gas": 0.3,
    "opacities": 0.45,
    "effusion": 0.18,
    "haze": 0.1,
    "collimation": 0.3,
    "marks": 0.3,
    "tube": 0.2,
    "edge enhancement": 0.5,
    "gamma": 0.8,
    "sigmoid": 0.3,
    "tone curve": 0.4,
    "heel effect": 0.4,
    "blur": 0.25,
    "sharpen": 0.25,
    "noise": 0.6,
}


def varied(image: Image, labels: Labels, rng: Random) -> tuple[Image, Labels]:
    """One image as another hospital would have taken it, normalised to [0, 1], and its labels."""
    if _chance("nothing but position", rng):
        image, labels = _deformed(image, labels, rng)
        return spread(image, rng.uniform(0, 2), rng.uniform(98, 100)), labels
    if _chance("stomach gas", rng):
        image = _with_gas(image, labels > 0, rng)
    image, labels = _deformed(_with_disease(image, labels, rng), labels, rng)
    image = _toned(image, rng)
    image, labels = _collimated(image, labels, rng)
    return _recorded(_with_marks(image, rng), rng), labels


def varied_without_lung(image: Image, rng: Random) -> Image:
    """What :func:`.bodies.drawn_without_lung` drew, recorded by some detector."""
    nothing = np.zeros(image.shape, np.uint8)
    image, _ = _collimated(_toned(image, rng), nothing, rng)
    return _recorded(_with_marks(image, rng), rng)


def _chance(name: str, rng: Random) -> bool:
    return bool(rng.random() < CHANCES[name])


# Disease: the label keeps the lung's outline, as the human readers did.


def _with_disease(image: Image, labels: Labels, rng: Random) -> Image:
    lungs = labels > 0
    if not lungs.any():
        return image
    dense = float(np.quantile(image[::4, ::4], 0.9))
    if _chance("opacities", rng):
        density = _opacities(lungs, rng) * rng.uniform(0.4, 0.95)
        image = _towards(image, dense * rng.uniform(0.65, 1.0), density)
    if _chance("effusion", rng):
        side = labels == (LEFT, RIGHT)[int(rng.integers(2))]
        if side.any():
            image = _towards(image, dense * rng.uniform(0.85, 1.0), _effusion(side, rng))
    if _chance("haze", rng):
        side = labels == (LEFT, RIGHT)[int(rng.integers(2))]
        image = _towards(image, dense, ndimage.gaussian_filter(side * rng.uniform(0.1, 0.5), 2.0))
    return image


def _towards(image: Image, value: float, share: npt.NDArray[np.floating]) -> Image:
    """Denser where there is disease, and never less dense than it was."""
    denser: Image = image + share.astype(np.float32) * np.maximum(value - image, 0)
    return denser


def _opacities(lungs: npt.NDArray[np.bool_], rng: Random) -> Image:
    """Nodules, masses and infiltrates that begin in the lungs, 0 to 1."""
    rows, columns = grid(lungs.shape)
    places = np.argwhere(lungs)
    largest = 0.35 if rng.random() < 0.3 else 0.16
    field = np.zeros(lungs.shape, np.float32)
    for _ in range(int(rng.integers(1, 9))):
        row, column = places[rng.integers(len(places))] * 2 / np.array(lungs.shape) - 1
        width = rng.uniform(0.03, largest)
        height = width * rng.uniform(0.6, 1.6)
        distance = ((rows - row) / height) ** 2 + ((columns - column) / width) ** 2
        one = rng.uniform(0.25, 1.0) * step(1 - distance, rng.uniform(1.5, 12))
        np.maximum(field, one, out=field)
    if rng.random() < 0.5:
        field *= np.clip(1 + 0.5 * smooth(lungs.shape, 24, rng), 0, 1.3)
    return np.clip(field, 0, 1)


def _effusion(side: npt.NDArray[np.bool_], rng: Random) -> Image:
    """The lower part of one lung, white up to a level that rises to the chest wall."""
    rows, columns = grid(side.shape)
    inside = np.argwhere(side)
    top, bottom = inside[:, 0].min(), inside[:, 0].max()
    level = (bottom - rng.uniform(0.1, 0.55) * (bottom - top)) * 2 / side.shape[0] - 1
    outwards = columns - inside[:, 1].mean() * 2 / side.shape[1] + 1
    outwards = outwards * np.sign(inside[:, 1].mean() - side.shape[1] / 2)
    surface = level - rng.uniform(0, 0.8) * outwards
    near = ndimage.gaussian_filter(ndimage.binary_dilation(side, iterations=6) * 1.0, 3.0)
    return step(rows - surface, rng.uniform(8, 40)) * near.astype(np.float32)


def _with_gas(image: Image, lungs: npt.NDArray[np.bool_], rng: Random) -> Image:
    """Bubbles in stomach and colon, just below a lung: dark, and no lung."""
    if not lungs.any():
        return image
    rows, columns = grid(lungs.shape)
    column = int(rng.choice(np.flatnonzero(lungs.any(axis=0))))
    base = int(np.flatnonzero(lungs[:, column]).max())
    dark = float(np.quantile(image[lungs], rng.uniform(0.2, 0.9)))
    for _ in range(int(rng.integers(1, 5))):
        width, height = rng.uniform(0.03, 0.2), rng.uniform(0.02, 0.12)
        row = base * 2 / lungs.shape[0] - 1 + height + rng.uniform(0, 0.25)
        center = column * 2 / lungs.shape[1] - 1 + rng.normal(0, 0.15)
        away = ((rows - row) / height) ** 2 + ((columns - center) / width) ** 2
        share = rng.uniform(0.3, 1.0) * step(1 - away, rng.uniform(3, 15)) * ~lungs
        image = image - share * np.maximum(image - dark, 0)
    return image.astype(np.float32)


# Position.


def _deformed(image: Image, labels: Labels, rng: Random) -> tuple[Image, Labels]:
    """Mirror, tilt, zoom, shift, stretch and bend; sides are named by the display afterwards."""
    size = image.shape[0]
    mirrored = rng.random() < 0.5
    angle = rng.uniform(-0.6, 0.6) if rng.random() < 0.08 else rng.normal(0, 0.105)
    zoom, aspect = np.exp(rng.uniform(-0.3, 0.42)), np.exp(rng.uniform(-0.2, 0.2))
    across, down = zoom * aspect, zoom / aspect
    matrix = np.array(
        [
            [across * np.cos(angle), across * (rng.normal(0, 0.05) - np.sin(angle)), 0],
            [down * np.sin(angle), down * np.cos(angle), 0],
        ]
    )
    matrix[:, 2] = rng.normal(0, 0.1, 2)
    if mirrored:
        matrix[:, 0] *= -1
    points = functional.affine_grid(
        torch.from_numpy(matrix[None].astype(np.float32)), [1, 1, size, size], align_corners=False
    )
    if rng.random() < 0.5:
        bend = np.stack([smooth(image.shape, 5, rng) for _ in range(2)], axis=-1)
        points = points + 0.018 * torch.from_numpy(bend)[None]
    border = "border" if rng.random() < 0.35 else "zeros"
    moved = functional.grid_sample(
        torch.from_numpy(image)[None, None], points, padding_mode=border, align_corners=False
    )[0, 0].numpy()
    if border == "zeros" and rng.random() < 0.2:
        moved[(points.abs().amax(-1) > 1)[0].numpy()] = rng.random()
    sides = np.stack([labels == LEFT, labels == RIGHT]).astype(np.float32)
    sides = functional.grid_sample(
        torch.from_numpy(sides)[None], points, padding_mode="zeros", align_corners=False
    )[0].numpy()
    left, right = sides[::-1] if mirrored else sides
    result = np.zeros(labels.shape, np.uint8)
    result[left > 0.5] = LEFT
    result[right > 0.5] = RIGHT
    return moved, result


# Detector and its software.


def _toned(image: Image, rng: Random) -> Image:
    """Other tone curves, and the compression of contrast that digital detectors come with."""
    if _chance("edge enhancement", rng):
        coarse = blurred(image, rng.uniform(8, 40))
        mean = coarse.mean()
        image = (
            mean
            + rng.uniform(0.35, 1.05) * (coarse - mean)
            + rng.uniform(0.8, 2.2) * (image - coarse)
        )
    image = spread(image, 0, 100)
    if _chance("gamma", rng):
        image = image ** np.float32(np.clip(np.exp(rng.normal(0, 0.45)), 0.3, 3.2))
    if _chance("sigmoid", rng):
        image = step(image - rng.uniform(0.3, 0.7), rng.uniform(2, 9))
    if _chance("tone curve", rng):
        steps = np.concatenate([[0.0], np.cumsum(rng.random(8) ** 1.5 + 0.03)])
        image = np.interp(image, np.linspace(0, 1, 9), steps / steps[-1]).astype(np.float32)
    if _chance("heel effect", rng):
        image = image + np.float32(0.12) * smooth(image.shape, 3, rng)
    return image.astype(np.float32)


def _collimated(image: Image, labels: Labels, rng: Random) -> tuple[Image, Labels]:
    """Shutters, black or white, that may take a rim of the lungs; what they hide is no lung."""
    if not _chance("collimation", rng):
        return image, labels
    size = image.shape[0]
    inside = np.argwhere(labels > 0)
    slack = size // 20
    first = inside.min(axis=0) + slack if len(inside) else np.full(2, size // 5)
    last = inside.max(axis=0) - slack if len(inside) else np.full(2, size * 4 // 5)
    hidden = np.ones(image.shape, bool)
    opening = []
    for axis in (0, 1):
        start = int(rng.integers(0, max(1, first[axis]))) if rng.random() < 0.5 else 0
        stop = int(rng.integers(min(last[axis], size - 1), size)) if rng.random() < 0.5 else size
        opening.append(slice(start, stop))
    hidden[tuple(opening)] = False
    shutter = rng.uniform(0, 0.1) if rng.random() < 0.75 else rng.uniform(0.8, 1.0)
    return np.where(hidden, np.float32(shutter), image), np.where(hidden, np.uint8(0), labels)


def _with_marks(image: Image, rng: Random) -> Image:
    """Letters, pacemakers, electrodes: rectangles; and a tube or lead."""
    size = image.shape[0]
    if _chance("marks", rng):
        for _ in range(int(rng.integers(1, 4))):
            height, width = (size * rng.uniform(0.02, 0.14, 2)).astype(int)
            row, column = rng.integers(0, size - max(height, width), 2)
            place = (slice(row, row + height), slice(column, column + width))
            opacity = np.float32(rng.uniform(0.6, 1.0))
            value = np.float32(rng.random() < 0.8)
            image[place] = image[place] * (1 - opacity) + opacity * value
    if _chance("tube", rng):
        at, (one, two, three, four) = np.linspace(0, 1, 2 * size)[:, None], rng.random((4, 2))
        path = (1 - at) ** 3 * one + 3 * at * (1 - at) ** 2 * two
        path = path + 3 * at**2 * (1 - at) * three + at**3 * four
        rows, columns = np.clip(path * size, 0, size - 1).astype(int).T
        density = np.float32(rng.uniform(0.1, 0.45))
        for shift in range(int(rng.integers(1, 4))):
            image[rows, np.minimum(columns + shift, size - 1)] += density
    return image


def _recorded(image: Image, rng: Random) -> Image:
    """Sharpness and noise, then the node's normalisation with percentiles a little off."""
    if _chance("blur", rng):
        image = ndimage.gaussian_filter(image, rng.uniform(0.4, 1.6))
    if _chance("sharpen", rng):
        image = image + np.float32(rng.uniform(0.2, 1.2)) * (
            image - ndimage.gaussian_filter(image, 1.0)
        )
    if _chance("noise", rng):
        noise = rng.standard_normal(image.shape, dtype=np.float32)
        image = image + np.float32(rng.uniform(0, 0.05)) * noise
    return spread(image, rng.uniform(0, 2), rng.uniform(98, 100))
