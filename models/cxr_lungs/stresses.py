"""What a held-out radiograph must stand: other detectors, positions and orientations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from scipy import ndimage

from node.sdk import Radiograph
from node.training.examples import Example

from .fields import blurred, spread


def stresses(example: Example) -> Iterator[tuple[str, Example]]:
    """The same chest from other detectors, tilted, collimated, and stored in other orientations.

    The same every time: nothing here is random but the noise, whose seed is fixed.
    """
    radiograph, labels = example.image, example.labels[0]
    if not isinstance(radiograph, Radiograph):
        raise TypeError("stresses are for radiographs")
    plane = spread(radiograph.array, 0, 100)
    noise = np.random.default_rng(0).normal(0, 0.05, plane.shape)
    coarse = blurred(plane, plane.shape[0] / 16)
    shades = {
        "dark (gamma 2)": plane**2,
        "light (gamma 0.5)": plane**0.5,
        "noise of 5 %": plane + noise,
        "blurred by 3 pixels of 512": ndimage.gaussian_filter(plane, 3 * plane.shape[0] / 512),
        "contrast of large structures halved": coarse.mean() + 0.5 * coarse + plane - coarse,
    }
    for change, changed in shades.items():
        image = replace(radiograph, array=changed.astype(np.float32))
        yield change, replace(example, image=image)
    for degrees in (-10, 10):
        image = replace(radiograph, array=ndimage.rotate(plane, degrees, reshape=False, order=1))
        turned = ndimage.rotate(labels, degrees, reshape=False, order=0)[None]
        yield "tilted by 10 degrees", replace(example, image=image, labels=turned)
    inside = np.argwhere(labels > 0)
    (top, left), (bottom, right) = inside.min(axis=0), inside.max(axis=0) + 1
    box = (slice(top, bottom), slice(left, right))
    image = replace(radiograph, array=plane[box])
    yield "cut to the lungs", replace(example, image=image, labels=example.labels[:, *box])
    image = replace(radiograph, array=plane[:, ::-1], toward=("R", "F"))
    yield "stored mirrored (R\\F)", replace(example, image=image, labels=labels[None, :, ::-1])
    image = replace(radiograph, array=plane.T, toward=("F", "L"))
    yield "stored on its side (F\\L)", replace(example, image=image, labels=labels.T[None])
