"""To the network's grid and back; left stays the patient's left."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.errors import GeometryError
from node.imaging.intensity import window
from node.imaging.resample import PlaneGrid, grid_on_body, patient_orientation
from node.imaging.sliding_window import context_offset, slab_indices
from node.imaging.volume import volume_from_series
from tests.phantoms import LEFT_LUNG, ORIENTATIONS, RIGHT_LUNG, chest_truth, ct_series


@pytest.mark.parametrize("position", ORIENTATIONS)
def test_patient_axes_point_to_head_back_and_left(position: str) -> None:
    """After turning, the left lung has larger column indices in every patient position."""
    series = ct_series(position=position, slices=8, rows=32, columns=40, spacing_mm=(10, 9, 9))
    volume = volume_from_series(series)
    orientation = patient_orientation(volume.affine)
    turned = orientation.apply(chest_truth(series))
    left = np.argwhere(turned == LEFT_LUNG).mean(axis=0)
    right = np.argwhere(turned == RIGHT_LUNG).mean(axis=0)
    assert left[2] > right[2] + 10
    spine = np.argwhere(orientation.apply(volume.array) > 450)
    assert np.median(spine[:, 1]) > turned.shape[1] / 2


@pytest.mark.parametrize("position", ORIENTATIONS)
def test_turning_back_undoes_turning(position: str) -> None:
    """undo(apply(x)) is x, so a label lands on the voxel that it was made from."""
    volume = volume_from_series(ct_series(position=position, slices=3, rows=5, columns=7))
    orientation = patient_orientation(volume.affine)
    array = np.arange(105).reshape(3, 5, 7)
    np.testing.assert_array_equal(orientation.undo(orientation.apply(array)), array)


def test_oblique_slices_are_refused() -> None:
    """At 45 degrees no image axis is the patient's."""
    half = 2**-0.5
    affine = np.array([[1, 0, 0, 0], [0, half, half, 0], [0, half, -half, 0], [0, 0, 0, 1.0]])
    with pytest.raises(GeometryError, match="oblique"):
        patient_orientation(affine)


grids = st.builds(
    PlaneGrid,
    size=st.just(64),
    spacing_mm=st.floats(1.0, 3.0),
    source_shape=st.just((50, 70)),
    source_spacing_mm=st.tuples(st.floats(0.7, 2.5), st.floats(0.7, 2.5)),
    center=st.tuples(st.floats(20, 30), st.floats(30, 40)),
)


@settings(max_examples=60, deadline=None)
@given(grid=grids)
def test_a_linear_ramp_survives_the_way_there_and_back(grid: PlaneGrid) -> None:
    """Positions are right to a tenth of a pixel: a ramp in mm comes back as itself."""
    rows, columns = np.mgrid[:50, :70]
    ramp = rows * grid.source_spacing_mm[0] + 2 * columns * grid.source_spacing_mm[1]
    back = grid.to_source(grid.from_source(ramp, outside=0), outside=0)
    covered = grid.to_source(grid.from_source(np.ones_like(ramp), outside=0), outside=0) > 0.999
    error = np.abs(back - ramp)[covered]
    assert error.max(initial=0) < 0.3 * max(*grid.source_spacing_mm, grid.spacing_mm)


@settings(max_examples=60, deadline=None)
@given(grid=grids, value=st.integers(-1000, 1000))
def test_outside_of_the_source_is_what_was_asked(grid: PlaneGrid, value: int) -> None:
    """A constant plane on the same constant outside stays constant: no seam at the edge."""
    sampled = grid.from_source(np.full((50, 70), value, np.int16), outside=value)
    np.testing.assert_allclose(sampled, value, atol=1e-2)


def test_grid_is_centred_on_the_body() -> None:
    """A body beside the middle of the image is brought to the middle of the network's square."""
    series = ct_series(
        slices=4, rows=128, columns=128, spacing_mm=(5, 4, 4), center_mm=(60, -40, 0)
    )
    volume = volume_from_series(series)
    grid = grid_on_body(volume.array, volume.spacing_mm, 128, 3.0, -300)
    body = grid.from_source(volume.array, -1024)[2] > -300
    middle = np.argwhere(body).mean(axis=0)
    np.testing.assert_allclose(middle, 63.5, atol=6)


def test_window_clips_to_the_unit_interval() -> None:
    """The ends of the window are 0 and 1, and nothing lies beyond."""
    values = np.array([-3000, -1000, -300, 400, 3000], np.int16)
    np.testing.assert_allclose(window(values, -1000, 400), [0, 0, 0.5, 1, 1])


def test_slabs_hold_neighbours_at_the_asked_distance() -> None:
    """Channels are the slice and its neighbours; the ends repeat; every slice comes once."""
    batches = list(slab_indices(7, channels=3, offset=2, batch=4))
    assert [len(batch) for batch in batches] == [4, 3]
    expected = [[max(i - 2, 0), i, min(i + 2, 6)] for i in range(7)]
    np.testing.assert_array_equal(np.concatenate(batches), expected)


@pytest.mark.parametrize(("spacing", "offset"), [(5.0, 1), (2.5, 2), (1.0, 4), (0.8, 5), (8, 1)])
def test_context_is_a_distance_not_a_slice_count(spacing: float, offset: int) -> None:
    """Thin slices take farther neighbours, so that the network sees the same distance."""
    assert context_offset(spacing, 4.0) == offset
