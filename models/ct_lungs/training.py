"""How ct_lungs is trained: `segnode train ct_lungs --data DIR --out DIR`.

``DIR`` holds folders of DICOM, with labels as a Segmentation, NIfTI or npz beside them, or with
packed threshold masks (``*.npz``) that name the SOP Instance UIDs that they belong to.
Preprocessing is the node's own, read from model.toml, so that the network trains on what it will
see. How samples are varied is in ``variation.py``, what the labels are worth in
``pseudo_labels.py``, what the result is tried with in ``stress.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from node.imaging.intensity import window
from node.imaging.pixels import AIR_HU
from node.imaging.resample import Orientation, PlaneGrid, grid_on_body, patient_orientation
from node.imaging.sliding_window import context_offset
from node.sdk import NetworkManifest, Preprocessing, Volume
from node.training.examples import Example, example_of
from node.training.labels import label_files, masks_by_sop_instance_uid
from node.training.recipe import Case, Image, Labels, Settings
from node.training.series import Series, read_series

from .pseudo_labels import LEFT, RIGHT, lung_labels
from .stress import stresses
from .variation import varied, without_lung

__all__ = ["PRESETS", "draw", "examples", "inputs", "read_cases", "stresses"]

PRESETS = MappingProxyType(
    {
        # From nothing: 15 minutes of one idle core.
        "default": Settings(
            epochs=20,
            samples_per_epoch=384,
            batch=8,
            rate=2e-3,
            validate_every=4,
            validation_patients=("ACRIN-FLT-Breast_013",),
        ),
        # From weights that know lungs already (--start).
        "further": Settings(
            epochs=12,
            samples_per_epoch=384,
            batch=8,
            rate=1e-3,
            validate_every=2,
            validation_patients=("ACRIN-FLT-Breast_013",),
        ),
        # For a first look, in a few minutes.
        "quick": Settings(
            epochs=6,
            samples_per_epoch=256,
            batch=8,
            rate=3e-3,
            validate_every=3,
            validation_patients=("ACRIN-FLT-Breast_013",),
            average_decay=0.97,
        ),
    }
)

SHARE_WITH_LUNG = 0.7
"""Of the slabs drawn from a series; the rest is from anywhere in it."""
SHARE_SYNTHETIC = 0.06
"""Of all slabs: bodies that no patient had, without a lung in them."""


def read_cases(data: Path, manifest: NetworkManifest) -> Sequence[Case]:
    """Every labelled series below ``data``, on the network's grid."""
    return [case for _, case, _ in _labelled([data], manifest)]


def draw(case: Case, manifest: NetworkManifest, rng: np.random.Generator) -> tuple[Image, Labels]:
    """One slab, varied as other scanners, patients and fields of view would vary it."""
    preprocessing = manifest.preprocessing
    if rng.random() < SHARE_SYNTHETIC:
        slab = without_lung(preprocessing.context_slices, case.planes.shape[1], rng)
        return varied(slab, np.zeros(slab.shape[1:], np.uint8), preprocessing.window_hu, rng)
    with_lung = np.flatnonzero(case.labels.any(axis=(1, 2)))
    pool = with_lung if rng.random() < SHARE_WITH_LUNG else np.arange(len(case.planes))
    index = int(rng.choice(pool))
    # Slice spacing varies between scanners: so does the distance of the neighbours. At the ends of
    # a series there are none, and the slice repeats.
    context_mm = preprocessing.context_mm * rng.uniform(0.5, 1.5)
    offset = context_offset(case.spacing_mm[0], context_mm) * int(rng.random() > 0.1)
    half = preprocessing.context_slices // 2
    around = index + np.arange(-half, half + 1) * offset
    slab = case.planes[np.clip(around, 0, len(case.planes) - 1)]
    return varied(slab, case.labels[index], preprocessing.window_hu, rng)


def inputs(case: Case, manifest: NetworkManifest) -> npt.NDArray[np.float32]:
    """Every slice with its neighbours, as the node shows them to the network."""
    preprocessing = manifest.preprocessing
    planes = window(case.planes, *preprocessing.window_hu)
    half = preprocessing.context_slices // 2
    offset = context_offset(case.spacing_mm[0], preprocessing.context_mm)
    around = np.arange(len(planes))[:, None] + np.arange(-half, half + 1) * offset
    return planes[np.clip(around, 0, len(planes) - 1)]


def examples(data: Sequence[Path], manifest: NetworkManifest) -> Iterator[Example]:
    """The same series with their labels on the scanner's grid."""
    for series, case, grid in _labelled(data, manifest):
        left, right = (grid.to_source(case.labels == side, 0) for side in (LEFT, RIGHT))
        sides = np.where(left >= right, LEFT, RIGHT)
        labels = np.where(left + right > 0.5, sides, 0).astype(np.uint8)
        yield example_of(series, patient_orientation(series.volume.affine).undo(labels))


def _labelled(data: Path, manifest: NetworkManifest) -> Iterator[tuple[Series, Case, PlaneGrid]]:
    """Each series with its labels as the network will see them, and where that lies.

    Labels that somebody made (SEG, NIfTI, npz) go before threshold masks.
    """
    made = label_files(*data)
    masks = masks_by_sop_instance_uid(
        [path for place in data for path in sorted(place.rglob("*.npz"))]
    )
    for series in (series for place in data for series in read_series(place)):
        volume = series.volume
        orientation = patient_orientation(volume.affine)
        planes, grid, spacing_mm = _planes(volume, orientation, manifest.preprocessing)
        labels = made.of(series, manifest.segments)
        if labels is not None:
            sides = orientation.apply(labels)
            on_grid = np.zeros(planes.shape, np.uint8)
            for side in (LEFT, RIGHT):
                on_grid[grid.from_source(sides == side, 0) > 0.5] = side
        elif all(uid in masks for uid in volume.sop_instance_uids):
            mask = orientation.apply(np.stack([masks[uid] for uid in volume.sop_instance_uids]))
            lungs = _mask_grid(grid, mask.shape).from_source(mask, 0) > 0.5
            on_grid = lung_labels(planes, lungs, spacing_mm[0], spacing_mm[1])
        else:
            continue
        yield (
            series,
            Case(series.name, series.patient, planes, on_grid, spacing_mm, series.files),
            grid,
        )


def _planes(
    volume: Volume, orientation: Orientation, preprocessing: Preprocessing
) -> tuple[npt.NDArray[np.float32], PlaneGrid, tuple[float, float, float]]:
    """HU on the network's grid, that grid, and its spacing."""
    array = orientation.apply(volume.array)
    slices_mm, rows_mm, columns_mm = (volume.spacing_mm[axis] for axis in orientation.axes)
    step_mm = preprocessing.in_plane_spacing_mm
    grid = grid_on_body(
        array,
        (slices_mm, rows_mm, columns_mm),
        preprocessing.in_plane_size,
        step_mm,
        preprocessing.body_above_hu,
    )
    return grid.from_source(array, AIR_HU), grid, (slices_mm, step_mm, step_mm)


def _mask_grid(grid: PlaneGrid, shape: tuple[int, ...]) -> PlaneGrid:
    """The same square over a mask (slices, rows, columns) that shows the source plane smaller."""
    rows, columns = shape[1:]
    shrink = (grid.source_shape[0] / rows, grid.source_shape[1] / columns)
    return PlaneGrid(
        grid.size,
        grid.spacing_mm,
        (rows, columns),
        (grid.source_spacing_mm[0] * shrink[0], grid.source_spacing_mm[1] * shrink[1]),
        (
            (grid.center[0] - (shrink[0] - 1) / 2) / shrink[0],
            (grid.center[1] - (shrink[1] - 1) / 2) / shrink[1],
        ),
    )
