"""How cxr_lungs is trained: `segnode train cxr_lungs --data DIR --out DIR`.

``DIR`` holds ``images/*.png`` and ``masks/*.png`` of the same names, grey, of the Montgomery set:
one image per patient. The masks were drawn by people. A fifth of the patients is held out by the
hash of their number and looked at once, after the last epoch: nothing is chosen by it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
from PIL import Image as Picture
from scipy import ndimage

from node.imaging.radiograph import normalised, square_grid
from node.sdk import Radiograph, RadiographPreprocessing
from node.training.examples import Example
from node.training.recipe import Case, Image, Labels, Settings, digest_of

from .bodies import beside_the_lungs, drawn_without_lung
from .stresses import stresses
from .variation import LEFT, RIGHT, varied, varied_without_lung

__all__ = ["PRESETS", "draw", "examples", "inputs", "read_cases", "stresses"]

PRESETS = MappingProxyType(
    {
        # Made the shipped weights.
        "default": Settings(
            epochs=22,
            samples_per_epoch=640,
            batch=8,
            rate=3e-3,
            validate_every=22,
            validation_share=0.2,
        ),
        # For a first look.
        "quick": Settings(
            epochs=8,
            samples_per_epoch=640,
            batch=8,
            rate=3e-3,
            validate_every=8,
            validation_share=0.2,
            average_decay=0.98,
        ),
    }
)

SHARE_DRAWN = 0.12
"""Of all samples: limbs, hands, breasts, rings and textures, drawn, with nothing labelled."""
SHARE_BESIDE = 0.05
"""Of all samples: pieces of a chest radiograph beside the lungs."""


CLINICS = {"MCUCXR": "Montgomery County", "CHNCXR": "Shenzhen No. 3 Hospital"}
FINDINGS = {"0": "normal", "1": "tuberculosis"}


def read_cases(data: Path, manifest: object) -> Sequence[Case]:
    """Every image below ``data`` that has a mask, on the network's grid."""
    preprocessing = _preprocessing(manifest)
    return [_case(image, mask, preprocessing) for image, mask in _pairs(data, "MCUCXR_*")]


def draw(case: Case, manifest: object, rng: np.random.Generator) -> tuple[Image, Labels]:
    """One radiograph, varied as other detectors, positions and patients would vary it."""
    kind = rng.random()
    without_lung = None
    if kind < SHARE_DRAWN:
        without_lung = drawn_without_lung(case.planes.shape[1], rng)
    elif kind < SHARE_DRAWN + SHARE_BESIDE:
        without_lung = beside_the_lungs(case.planes[0], case.labels[0] > 0, rng)
    if without_lung is not None:
        image = varied_without_lung(without_lung, rng)
        return image[None], np.zeros(image.shape, np.uint8)
    image, labels = varied(case.planes[0], case.labels[0], rng)
    return image[None], labels


def inputs(case: Case, manifest: object) -> npt.NDArray[np.float32]:
    """The image as the node shows it to the network: (1, 1, size, size)."""
    return normalised(case.planes[0], None, _preprocessing(manifest).percentiles)[None, None]


def examples(folders: Sequence[Path], manifest: object) -> Iterator[Example]:
    """Every labelled image below ``folders`` on its own grid, of Shenzhen too, as a radiograph."""
    for folder in folders:
        for image, mask in _pairs(folder, "*"):
            clinic, number, finding = image.stem.split("_")
            plane, labels = _read(image, mask)
            yield Example(
                name=image.stem,
                patient=f"{clinic}_{number}",
                image=Radiograph(plane, None, ("L", "F"), None, "2.25.1"),
                labels=labels[None],
                spacing_mm=(1.0, 1.0, 1.0),
                scanner=f"{CLINICS.get(clinic, clinic)}, {FINDINGS.get(finding, finding)}",
                digest=digest_of((image, mask)),
            )


def sides(mask: npt.NDArray[np.bool_]) -> Labels:
    """The two largest regions of a mask of both lungs: the one further right is LEFT."""
    regions, _ = ndimage.label(mask)
    largest = np.argsort(np.bincount(regions.ravel())[1:])[-2:] + 1
    first, second = sorted(largest, key=lambda region: np.argwhere(regions == region)[:, 1].mean())
    return np.where(regions == second, LEFT, np.where(regions == first, RIGHT, 0)).astype(np.uint8)


def _pairs(data: Path, pattern: str) -> Iterator[tuple[Path, Path]]:
    """Images that have a mask, in order of their names."""
    for image in sorted((data / "images").glob(f"{pattern}.png")):
        mask = data / "masks" / image.name
        if mask.is_file():
            yield image, mask


def _read(image: Path, mask: Path) -> tuple[npt.NDArray[np.float32], Labels]:
    with Picture.open(image) as file:
        plane = np.asarray(file.convert("L"), np.float32) / 255
    with Picture.open(mask) as file:
        return plane, sides(np.asarray(file.convert("L")) > 127)


def _case(image: Path, mask: Path, preprocessing: RadiographPreprocessing) -> Case:
    plane, labels = _read(image, mask)
    grid = square_grid((plane.shape[0], plane.shape[1]), None, preprocessing.size)
    on_grid = np.zeros((preprocessing.size, preprocessing.size), np.uint8)
    for side in (LEFT, RIGHT):
        on_grid[grid.from_source(labels == side, 0) > 0.5] = side
    return Case(
        name=image.stem,
        patient=image.stem.rsplit("_", 1)[0],
        planes=grid.from_source(plane, 0)[None],
        labels=on_grid[None],
        # The PNGs carry no spacing: surface distances are in pixels of the network's grid.
        spacing_mm=(1.0, 1.0, 1.0),
        files=(image, mask),
    )


def _preprocessing(manifest: object) -> RadiographPreprocessing:
    preprocessing = getattr(manifest, "preprocessing", None)
    assert isinstance(preprocessing, RadiographPreprocessing)  # noqa: S101 - see model.toml
    return preprocessing
