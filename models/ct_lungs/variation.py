"""Slabs as other scanners, patients and fields of view would show them.

Four series train this network. What they do not show is painted or cut here: consolidation at the
pleura, bowel gas, foam beside the patient, contrast medium, half a chest, other kernels and noise.
Slabs are HU, float32, shape (slices, rows, columns), rows towards the back, columns towards the
patient's left; labels are uint8, shape (rows, columns), of the middle slice.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch.nn import functional

from .pseudo_labels import LEFT, RIGHT

AIR_HU = -1024.0
BODY_ABOVE_HU = -300.0

Array = npt.NDArray[np.float32]
Labels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Random = np.random.Generator

CHANCES = {
    "consolidation": 0.2,
    "density": 0.3,
    "contrast": 0.3,
    "gas": 0.25,
    "foam": 0.2,
    "field of view": 0.4,
}


def varied(
    slab: Array, labels: Labels, window_hu: tuple[float, float], rng: Random
) -> tuple[Array, Labels]:
    """Paint, cut, deform, mirror, filter; returns the network's input in [0, 1], and labels."""
    slab, labels = slab.copy(), labels.copy()
    lung = labels > 0
    if lung.any():
        if rng.random() < CHANCES["density"]:
            slab[:, lung] += rng.uniform(-60, 200) * _field(lung.shape, 4, rng)[lung]
        if rng.random() < CHANCES["consolidation"]:
            _consolidate(slab, lung, rng)
    if rng.random() < CHANCES["contrast"]:
        _enhance(slab, rng)
    if rng.random() < CHANCES["gas"]:
        for _ in range(int(rng.integers(1, 5))):
            _put_gas(slab, lung, rng)
    if rng.random() < CHANCES["foam"]:
        _put_foam(slab, lung, rng)
    center = np.array(lung.shape) / 2 - 0.5
    if rng.random() < CHANCES["field of view"]:
        center = _cut(slab, labels, rng)
    slab, labels = _deformed(slab, labels, center, rng)
    return _filtered(slab, window_hu, rng), labels


def without_lung(slices: int, size: int, rng: Random) -> Array:
    """A made-up head, belly or limb: ellipses of tissue, bone and gas, the same in all slices."""
    rows, columns = np.indices((size, size), np.float32)
    plane = np.full((size, size), AIR_HU, np.float32)
    middle = size / 2
    for _ in range(int(rng.integers(1, 3))):
        height, width = rng.uniform(0.1, 0.38, 2) * size
        row, column = middle + rng.uniform(-0.15, 0.15, 2) * size
        radius = np.hypot((rows - row) / height, (columns - column) / width)
        radius += 0.08 * (_field((size, size), 5, rng) - 0.5)
        plane[radius < 1] = rng.uniform(-110, -70)
        plane[radius < rng.uniform(0.75, 0.98)] = rng.uniform(20, 60)
        if rng.random() < 0.5:  # a skull, or a thick bone
            outer = rng.uniform(0.3, 0.95)
            plane[(radius < outer) & (radius > outer - rng.uniform(0.05, 0.15))] = 1000
    slab = np.repeat(plane[None], slices, axis=0)
    nothing = np.zeros((size, size), bool)
    for _ in range(int(rng.integers(0, 7))):
        _put_gas(slab, nothing, rng)
    return np.asarray(ndimage.gaussian_filter(slab, (0, 0.7, 0.7)), np.float32)


def _consolidate(slab: Array, lung: Mask, rng: Random) -> None:
    """Soft tissue in the lung where it touches the pleura; it stays lung."""
    rim = np.argwhere(lung & ~ndimage.binary_erosion(lung))
    row, column = rim[rng.integers(len(rim))]
    blob = _blob(lung.shape, (row, column), rng.uniform(4, 20, 2), rng) & lung
    hu = rng.uniform(-100, 60) + 20 * rng.standard_normal(int(blob.sum()), np.float32)
    share = rng.uniform(0.7, 1.0)  # some air is left in between
    slab[:, blob] = (1 - share) * slab[:, blob] + share * hu


def _enhance(slab: Array, rng: Random) -> None:
    """Contrast medium: blood and organs brighter, here more and there less."""
    blood = np.clip((slab + 20) / 40, 0, 1) * (slab < 200)
    slab += rng.uniform(50, 350) * blood * _field(slab.shape[1:], 6, rng) ** 2


def _put_gas(slab: Array, lung: Mask, rng: Random) -> None:
    """Air in the body that is not lung: a bubble, with a fluid level, or with content."""
    body = slab[len(slab) // 2] > BODY_ABOVE_HU
    inside = np.argwhere(ndimage.binary_erosion(body, iterations=3))
    if not len(inside):
        return
    row, column = inside[rng.integers(len(inside))]
    gas = _blob(lung.shape, (row, column), rng.uniform(2, 22, 2), rng) & body
    gas &= ~ndimage.binary_dilation(lung, iterations=2)
    if rng.random() < 0.3:  # stool: crumbs of both
        gas &= _field(lung.shape, 32, rng) > rng.uniform(0.3, 0.6)
    fluid = rng.random() < 0.3
    level = row + rng.uniform(-5, 10)
    air = gas & (np.arange(lung.shape[0])[:, None] < level) if fluid else gas
    slab[:, gas] = rng.uniform(0, 40)
    slab[:, air] = rng.uniform(-1020, -900)
    slab[:] = np.where(gas, ndimage.gaussian_filter(slab, (0, 0.5, 0.5)), slab)


def _put_foam(slab: Array, lung: Mask, rng: Random) -> None:
    """Rests and cushions: as light as lung, but beside the body."""
    plane = slab[len(slab) // 2]
    outside = ~ndimage.binary_fill_holes(plane > BODY_ABOVE_HU) & ~lung
    where = np.argwhere(outside)
    if not len(where):
        return
    row, column = where[rng.integers(len(where))]
    foam = _blob(lung.shape, (row, column), rng.uniform(8, 60, 2), rng) & outside
    slab[:, foam] = rng.uniform(-990, -750) + rng.uniform(0, 60) * rng.standard_normal(
        int(foam.sum()), np.float32
    )


def _cut(slab: Array, labels: Labels, rng: Random) -> npt.NDArray[np.float64]:
    """Show a part of the chest only, air beyond; returns the middle of what is left of the body.

    The node centres its square on the body in the image. With half of a chest that is not the
    body's midline: which side a lung is must come from spine, ribs and mediastinum.
    """
    size = labels.shape[0]
    rows, columns = np.indices(labels.shape)
    body = slab[len(slab) // 2] > BODY_ABOVE_HU
    across = np.flatnonzero(body.any(axis=0))
    if not len(across):
        return np.array([size / 2 - 0.5, size / 2 - 0.5])
    shown = np.ones(labels.shape, bool)
    if rng.random() < 0.75:  # one side
        cut = across[0] + rng.uniform(0.15, 0.6) * (across[-1] - across[0])
        shown &= columns > cut if rng.random() < 0.5 else columns < across[0] + across[-1] - cut
    if rng.random() < 0.4:  # the reconstruction circle
        row, column = size / 2 + rng.uniform(-0.15, 0.15, 2) * size
        shown &= np.hypot(rows - row, columns - column) < rng.uniform(0.3, 0.5) * size
    if rng.random() < 0.25:  # front or back
        down = np.flatnonzero(body.any(axis=1))
        cut = down[0] + rng.uniform(0.05, 0.35) * (down[-1] - down[0])
        shown &= rows > cut if rng.random() < 0.5 else rows < down[0] + down[-1] - cut
    if not (body & shown).any():
        shown[:] = True
    slab[:, ~shown] = AIR_HU
    labels[~shown] = 0
    center: npt.NDArray[np.float64] = np.argwhere(body & shown).mean(axis=0)
    return center


def _deformed(
    slab: Array, labels: Labels, center: npt.NDArray[np.float64], rng: Random
) -> tuple[Array, Labels]:
    """Turn, scale, bend, shift about ``center`` and mirror.

    A mirror image swaps the labels: left is where the affine says it is, not where the heart is.
    """
    size = labels.shape[0]
    angle = np.radians(rng.uniform(-20, 20))
    zoom, stretch = rng.uniform(0.75, 1.35), rng.uniform(0.85, 1.18)
    mirrored = rng.random() < 0.5
    turn = zoom * np.array(
        [[np.cos(angle), -np.sin(angle)], [stretch * np.sin(angle), stretch * np.cos(angle)]]
    )
    turn[:, 0] *= -1 if mirrored else 1
    # grid_sample's coordinates: column before row, -1 to 1 over the square.
    shift = (center[::-1] - (size / 2 - 0.5)) / (size / 2) + rng.uniform(-0.2, 0.2, 2)
    theta = torch.from_numpy(np.column_stack([turn, shift]).astype(np.float32))[None]
    points = functional.affine_grid(theta, [1, 1, size, size], align_corners=False)
    bend = torch.from_numpy(rng.standard_normal((1, 2, 5, 5), np.float32)) * rng.uniform(0, 0.05)
    bend = functional.interpolate(bend, (size, size), mode="bicubic", align_corners=True)
    points = points + bend.permute(0, 2, 3, 1)

    # grid_sample pads with 0: shift air there first.
    image = torch.from_numpy(slab)[None] - AIR_HU
    image = functional.grid_sample(image, points, align_corners=False)[0] + AIR_HU
    moved = functional.grid_sample(
        torch.from_numpy(labels.astype(np.float32))[None, None],
        points,
        mode="nearest",
        align_corners=False,
    )[0, 0]
    result: Labels = moved.numpy().astype(np.uint8)
    if mirrored:
        result = np.choose(result, (0, RIGHT, LEFT)).astype(np.uint8)
    return image.numpy(), result


def _filtered(slab: Array, window_hu: tuple[float, float], rng: Random) -> Array:
    """Kernel, noise, calibration; then the window to [0, 1]."""
    soft = ndimage.uniform_filter(slab, (0, 3, 3), mode="nearest")
    # Below 0 softens, above 0 sharpens, as reconstruction kernels do.
    slab = slab + rng.uniform(-1.0, 1.2) * (slab - soft)
    noise = rng.standard_normal(slab.shape, np.float32)
    if rng.random() < 0.5:  # the grain of a soft kernel
        noise = 2 * ndimage.gaussian_filter(noise, (0, 0.7, 0.7))
    slab = slab + 70 * rng.uniform(0, 1) ** 2 * noise
    low, high = window_hu
    scaled = (slab - low) / (high - low) * rng.uniform(0.9, 1.1) + rng.uniform(-0.04, 0.04)
    return np.clip(scaled, 0, 1).astype(np.float32)


def _field(shape: tuple[int, ...], cells: int, rng: Random) -> Array:
    """A smooth random field in [0, 1], about ``cells`` hills along each axis."""
    coarse = torch.from_numpy(rng.standard_normal((1, 1, cells, cells), np.float32))
    fine = functional.interpolate(coarse, shape, mode="bilinear", align_corners=True)[0, 0]
    result: Array = torch.sigmoid(2 * fine).numpy()
    return result


def _blob(
    shape: tuple[int, ...], center: tuple[float, float], radii: npt.NDArray[np.float64], rng: Random
) -> Mask:
    """A bent ellipse, radii in pixels, turned at random."""
    rows, columns = np.indices(shape, np.float32)
    angle = rng.uniform(0, np.pi)
    down, across = rows - center[0], columns - center[1]
    one = (down * np.cos(angle) + across * np.sin(angle)) / radii[0]
    other = (across * np.cos(angle) - down * np.sin(angle)) / radii[1]
    result: Mask = np.hypot(one, other) < 0.7 + 0.6 * _field(shape, 12, rng)
    return result
