"""Left and right lung from a threshold mask of both: what ct_lungs is trained on.

No human drew anything. The mask is air inside the body with its vessels closed (threshold and
morphology); here the trachea and main bronchi are taken out of it, and left and right are told
apart by where they lie. What this gets wrong (consolidation, effusion) the network learns to get
wrong.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

LEFT, RIGHT = 1, 2

AIR_BELOW_HU = -500
AIRWAY_MM2 = (20.0, 900.0)
"""Cross-section of a trachea or main bronchus; a larger region of air is lung."""
TRACHEA_STARTS_WITHIN_MM = 20.0
BRONCHI_WITHIN_MM = 40.0
"""How far from the body's midline."""

Mask = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.uint8]


def lung_labels(
    planes: npt.NDArray[np.float32], lungs: Mask, slice_spacing_mm: float, spacing_mm: float
) -> Labels:
    """Label one CT: 0 background, 1 left lung, 2 right lung.

    Parameters
    ----------
    planes
        HU, shape (slices, rows, columns), axes towards head, back and the patient's left, square
        in-plane pixels of ``spacing_mm``, the body's midline in the middle column.
    lungs
        Threshold mask of both lungs and airways, same shape.
    """
    midline = (planes.shape[2] - 1) / 2
    air = lungs & (planes < AIR_BELOW_HU)
    airways = _airways(air, midline, spacing_mm)
    wall = ndimage.binary_dilation(airways, _disk(1.0)[None]) & ~air
    lungs = lungs & ~airways & ~wall
    lungs = _without_specks(lungs, 5.0 / (slice_spacing_mm * spacing_mm**2 / 1000))
    return _split(lungs, midline, slice_spacing_mm, spacing_mm)


def _airways(air: Mask, midline: float, spacing_mm: float) -> Mask:
    """Small compact air near the midline, followed from the top down."""
    airways = np.zeros_like(air)
    above = np.zeros(air.shape[1:], bool)
    for index in range(len(air) - 1, -1, -1):
        regions, _ = ndimage.label(air[index])
        for region, box in enumerate(ndimage.find_objects(regions), start=1):
            mask = regions[box] == region
            area = float(mask.sum()) * spacing_mm**2
            if not AIRWAY_MM2[0] <= area <= AIRWAY_MM2[1]:
                continue
            height, width = mask.shape
            column = box[1].start + np.nonzero(mask)[1].mean()
            off_midline_mm = abs(column - midline) * spacing_mm
            compact = area > 0.55 * height * width * spacing_mm**2
            compact = compact and max(height, width) < 2.2 * min(height, width)
            starts = compact and off_midline_mm < TRACHEA_STARTS_WITHIN_MM
            follows = off_midline_mm < BRONCHI_WITHIN_MM and bool((mask & above[box]).any())
            if starts or follows:
                airways[index][box] |= mask
        above = airways[index]
    return airways


def _without_specks(mask: Mask, voxels: float) -> Mask:
    regions, _ = ndimage.label(mask)
    keep = np.bincount(regions.ravel()) >= voxels
    keep[0] = False
    result: Mask = keep[regions]
    return result


def _split(lungs: Mask, midline: float, slice_spacing_mm: float, spacing_mm: float) -> Labels:
    """Give each voxel the side of the nearest core; cores are what in-plane erosion leaves."""
    core = ndimage.binary_erosion(lungs, _disk(6.0 / spacing_mm)[None])
    core |= _components_without(core, lungs)
    regions, _ = ndimage.label(core)
    columns = np.arange(lungs.shape[2])
    seeds = np.zeros(lungs.shape, np.uint8)
    for region, box in enumerate(ndimage.find_objects(regions), start=1):
        mask = regions[box] == region
        on_left = columns[box[2]] > midline
        weights = mask.sum(axis=(0, 1))
        share_left = float(weights[on_left].sum()) / float(weights.sum())
        part = seeds[box]
        if 0.1 < share_left < 0.9:  # both lungs in one core: cut it at the midline
            part[mask & on_left] = LEFT
            part[mask & ~on_left] = RIGHT
        else:
            part[mask] = LEFT if share_left >= 0.5 else RIGHT
    if not seeds.any():
        return seeds
    nearest = ndimage.distance_transform_edt(
        seeds == 0,
        sampling=(slice_spacing_mm, spacing_mm, spacing_mm),
        return_distances=False,
        return_indices=True,
    )
    return np.where(lungs, seeds[tuple(nearest)], 0).astype(np.uint8)


def _components_without(core: Mask, lungs: Mask) -> Mask:
    """Whole components of ``lungs`` too thin to keep a core (recesses, tips)."""
    regions, count = ndimage.label(lungs)
    has_core = np.zeros(count + 1, bool)
    has_core[np.unique(regions[core])] = True
    result: Mask = lungs & ~has_core[regions]
    return result


def _disk(radius: float) -> Mask:
    reach = int(radius)
    grid = np.arange(-reach, reach + 1)
    disk: Mask = grid[:, None] ** 2 + grid**2 <= radius**2
    return disk
