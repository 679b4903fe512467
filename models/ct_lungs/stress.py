"""The same chest as a worse scanner, another field of view or a sicker patient would show it.

What the model was trained to withstand, `segnode evaluate` measures on series it was not trained
on. Arrays are turned to patient axes (head, back, left) for it, and back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from node.imaging.pixels import AIR_HU
from node.imaging.resample import patient_orientation
from node.sdk import Volume
from node.training.examples import Example

from .pseudo_labels import LEFT, RIGHT

Hu = npt.NDArray[np.int16]
Labels = npt.NDArray[np.uint8]
Spacing = tuple[float, float, float]
Change = Callable[[Hu, Labels, Spacing], tuple[Hu, Labels]]

CONSOLIDATIONS = 6
CONSOLIDATION_RADIUS_MM = 25.0
CONSOLIDATION_HU = 40
THICKEST_MM = 6.0


def stresses(example: Example) -> Iterator[tuple[str, Example]]:
    """Each change by name, with the changed example."""
    for name, change in CHANGES.items():
        yield name, _changed(example, change)
    half = len(example.labels) // 2
    yield "the first half of the slices", _slices(example, slice(None, half))
    yield "the second half of the slices", _slices(example, slice(half, None))
    if 2 * example.spacing_mm[0] <= THICKEST_MM:
        yield "every second slice", _slices(example, slice(None, None, 2))


def _changed(example: Example, change: Change) -> Example:
    volume = example.image
    assert isinstance(volume, Volume)  # noqa: S101 - ct_lungs reads volumes
    orientation = patient_orientation(volume.affine)
    first, second, third = (volume.spacing_mm[axis] for axis in orientation.axes)
    hu, labels = change(
        orientation.apply(volume.array).copy(),
        orientation.apply(example.labels).copy(),
        (first, second, third),
    )
    return replace(
        example,
        image=replace(volume, array=np.ascontiguousarray(orientation.undo(hu))),
        labels=np.ascontiguousarray(orientation.undo(labels)),
    )


def _slices(example: Example, which: slice) -> Example:
    """Some of the slices only, as if no others had been sent."""
    volume = example.image
    assert isinstance(volume, Volume)  # noqa: S101 - ct_lungs reads volumes
    start, _, step = which.indices(len(volume.array))
    affine = volume.affine.copy()
    affine[:3, 3] += start * affine[:3, 0]
    affine[:3, 0] *= step
    slices_mm, rows_mm, columns_mm = volume.spacing_mm
    spacing_mm = (step * slices_mm, rows_mm, columns_mm)
    part = Volume(volume.array[which], affine, spacing_mm, volume.sop_instance_uids[which])
    return replace(example, image=part, labels=example.labels[which], spacing_mm=spacing_mm)


def _cut(share: float, *, keep_left: bool) -> Change:
    """Air instead of a share of the columns, on one side of the patient."""

    def change(hu: Hu, labels: Labels, _: Spacing) -> tuple[Hu, Labels]:
        count = round(share * hu.shape[2])
        gone = slice(0, count) if keep_left else slice(hu.shape[2] - count, None)
        hu[..., gone], labels[..., gone] = AIR_HU, 0
        return hu, labels

    return change


def _circle(hu: Hu, labels: Labels, spacing_mm: Spacing) -> tuple[Hu, Labels]:
    rows, columns = np.indices(hu.shape[1:])
    middle = (np.array(hu.shape[1:]) - 1) / 2
    far = np.hypot((rows - middle[0]) * spacing_mm[1], (columns - middle[1]) * spacing_mm[2]) > 130
    hu[:, far], labels[:, far] = AIR_HU, 0
    return hu, labels


def _mirrored(hu: Hu, labels: Labels, _: Spacing) -> tuple[Hu, Labels]:
    swapped = np.choose(labels, (0, RIGHT, LEFT)).astype(np.uint8)
    return hu[..., ::-1].copy(), swapped[..., ::-1].copy()


def _noisy(hu: Hu, labels: Labels, _: Spacing) -> tuple[Hu, Labels]:
    noise = np.random.default_rng(0).normal(0, 100, hu.shape)
    return np.clip(hu + noise, AIR_HU, 3071).astype(np.int16), labels


def _sharpened(hu: Hu, labels: Labels, _: Spacing) -> tuple[Hu, Labels]:
    soft = ndimage.gaussian_filter(hu.astype(np.float32), (0, 1.2, 1.2))
    return np.clip(2.5 * hu - 1.5 * soft, AIR_HU, 3071).astype(np.int16), labels


def _smoothed(hu: Hu, labels: Labels, _: Spacing) -> tuple[Hu, Labels]:
    return ndimage.gaussian_filter(hu, (0, 1.5, 1.5)).astype(np.int16), labels


def _consolidated(hu: Hu, labels: Labels, spacing_mm: Spacing) -> tuple[Hu, Labels]:
    """Balls of soft tissue at the pleura. They are lung, and stay labelled so."""
    rng = np.random.default_rng(0)
    rim = np.argwhere((labels > 0) & ~ndimage.binary_erosion(labels > 0))
    for center in rim[rng.integers(len(rim), size=CONSOLIDATIONS)]:
        away = np.indices(hu.shape, np.float32).transpose(1, 2, 3, 0) - center
        ball = np.linalg.norm(away * spacing_mm, axis=-1) < CONSOLIDATION_RADIUS_MM
        hu[ball & (labels > 0)] = CONSOLIDATION_HU
    return hu, labels


CHANGES: dict[str, Change] = {
    "39 % of the columns cut, patient's right": _cut(0.39, keep_left=True),
    "39 % of the columns cut, patient's left": _cut(0.39, keep_left=False),
    "half of the columns cut, patient's right": _cut(0.5, keep_left=True),
    "half of the columns cut, patient's left": _cut(0.5, keep_left=False),
    "a field of view of 260 mm": _circle,
    "the body mirrored": _mirrored,
    "noise of 100 HU": _noisy,
    "a sharper kernel": _sharpened,
    "a softer kernel": _smoothed,
    "consolidation painted at the pleura": _consolidated,
}
