"""Volume, intensity and extent of segments of known shape."""

from __future__ import annotations

import math

import numpy as np
import pytest

from node.manifest import Code, Segment
from node.results.measurements import measure, surface_diameter_mm
from node.sdk import LabelMap, Volume

SPACING_MM = (2.5, 0.8, 0.7)


def segment(number: int) -> Segment:
    code = Code(value="44029006", scheme="SCT", meaning="Left lung")
    return Segment(number=number, label=f"Part {number}", category=code, type=code, rgb=(1, 2, 3))


def affine_of(spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """An oblique stack: what is measured must not depend on how it lies."""
    turn = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn * np.asarray(spacing_mm)
    affine[:3, 3] = (-100, 50, 7)
    return affine


def ball(radius_mm: float, shape: tuple[int, int, int]) -> np.ndarray:
    grid = np.moveaxis(np.indices(shape), 0, -1) - (np.asarray(shape) - 1) / 2
    return ((grid * SPACING_MM) ** 2).sum(axis=-1) <= radius_mm**2


def volume_of(array: np.ndarray) -> Volume:
    uids = tuple(f"2.25.{index}" for index in range(len(array)))
    return Volume(array.astype(np.int16), affine_of(SPACING_MM), SPACING_MM, uids)


def test_a_ball_has_its_volume_and_diameter() -> None:
    """Within a voxel of what geometry says."""
    mask = ball(20, (21, 61, 65))
    volume = volume_of(np.where(mask, -800, 40))
    (found,) = measure(
        volume, LabelMap(mask.astype(np.uint8), volume.sop_instance_uids), [segment(1)]
    )
    assert found.volume_ml == pytest.approx(4 / 3 * math.pi * 20**3 / 1000, rel=0.02)
    assert found.diameter_mm == pytest.approx(40, abs=max(SPACING_MM))
    assert (found.mean, found.standard_deviation) == (-800, 0)


def test_a_single_voxel_is_as_wide_as_its_widest_side() -> None:
    """The surface lies on the voxel's faces, not in its middle."""
    mask = np.zeros((5, 5, 5), bool)
    mask[2, 2, 2] = True
    assert surface_diameter_mm(mask, affine_of(SPACING_MM)) == pytest.approx(max(SPACING_MM))


@pytest.mark.parametrize("seed", range(8))
def test_the_diameter_is_that_of_all_faces(seed: int) -> None:
    """Looking at the ends of lines only misses no pair of points that is further apart."""
    mask = np.random.default_rng(seed).random((6, 7, 8)) < 0.1
    mask[3, 3, 3] = True
    padded = np.pad(mask, 1)
    faces = []
    for axis in range(3):
        where = np.argwhere(np.diff(padded.astype(np.int8), axis=axis)).astype(float)
        where[:, axis] += 0.5
        faces.append(where - 1)
    affine = affine_of(SPACING_MM)
    points = np.concatenate(faces) @ affine[:3, :3].T
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    assert surface_diameter_mm(mask, affine) == pytest.approx(distances.max())


def test_what_is_not_there_has_no_volume_and_nothing_else() -> None:
    """An absent segment is a result of its own, not a missing one."""
    volume = volume_of(np.zeros((4, 5, 6)))
    labels = np.zeros((4, 5, 6), np.uint8)
    labels[1:3, 2, 2] = 2
    absent, present = measure(
        volume, LabelMap(labels, volume.sop_instance_uids), [segment(1), segment(2)]
    )
    assert (absent.volume_ml, absent.mean, absent.diameter_mm) == (0, None, None)
    assert (present.first_slice, present.last_slice) == (1, 2)
