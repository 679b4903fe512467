"""Which 3-D components of a label map are kept."""

from __future__ import annotations

import numpy as np

from node.imaging.components import keep_large_components

LIMITS = {"min_component_ml": 10.0, "min_component_share": 0.1, "min_segment_ml": 50.0}


def labels() -> np.ndarray:
    array = np.zeros((12, 12, 24), np.uint8)
    array[1:9, 1:9, 1:9] = 1
    array[1:9, 1:9, 12:22] = 2
    return array


def test_small_islands_in_background_go() -> None:
    """A speck of bowel gas is not lung."""
    clean = labels()
    dirty = labels()
    dirty[10, 10, 2] = 2
    np.testing.assert_array_equal(keep_large_components(dirty, 1.0, **LIMITS), clean)


def test_an_island_inside_the_other_segment_joins_it() -> None:
    """A few voxels of 'left' inside the right lung are right lung, not a hole."""
    clean = labels()
    dirty = labels()
    dirty[4, 4, 15:17] = 1
    np.testing.assert_array_equal(keep_large_components(dirty, 1.0, **LIMITS), clean)


def test_an_island_at_the_edge_of_the_volume_goes() -> None:
    """Components that touch the array's border are treated like any other."""
    dirty = labels()
    dirty[11, 11, 23] = 1
    np.testing.assert_array_equal(keep_large_components(dirty, 1.0, **LIMITS), labels())


def test_a_large_second_component_stays() -> None:
    """A lung in two pieces stays in two pieces."""
    two = labels()
    two[10:12, 0:12, 1:9] = 1
    np.testing.assert_array_equal(keep_large_components(two, 1.0, **LIMITS), two)


def test_a_segment_too_small_to_be_there_goes() -> None:
    """Volumes count in millilitres, not voxels: at 0.01 ml a voxel nothing is left."""
    assert not keep_large_components(labels(), 0.01, **LIMITS).any()


def test_an_empty_label_map_stays_empty() -> None:
    """Nothing found is not an error here."""
    empty = np.zeros((2, 3, 4), np.uint8)
    assert not keep_large_components(empty, 1.0, **LIMITS).any()
