"""2-D regions: what is kept, filled and thrown away."""

from __future__ import annotations

import numpy as np

from node.imaging.regions import keep_large_regions

KEEP_ALL = {"min_region_share": 0.0, "min_segment_share": 0.0, "min_total_share": 0.0}


def two_lungs() -> np.ndarray:
    labels = np.zeros((100, 100), np.uint8)
    labels[20:80, 60:90] = 1
    labels[20:80, 10:40] = 2
    return labels


def test_specks_go_and_holes_are_filled() -> None:
    """Each segment by itself; the rest is untouched."""
    labels = two_lungs()
    labels[90:93, 5:8] = 1
    labels[40:45, 20:25] = 0
    found = keep_large_regions(labels, **{**KEEP_ALL, "min_region_share": 0.1})
    np.testing.assert_array_equal(found, two_lungs())
    np.testing.assert_array_equal(labels[40:45, 20:25], 0)  # the argument is not changed


def test_a_small_segment_is_removed_and_too_little_of_all_is_nothing() -> None:
    """One lung may be absent; a few pixels together are no chest."""
    labels = two_lungs()
    labels[:, :50] = 0
    labels[50:55, 20:25] = 2
    found = keep_large_regions(labels, **{**KEEP_ALL, "min_segment_share": 0.01})
    assert set(np.unique(found)) == {0, 1}
    assert not keep_large_regions(labels, **{**KEEP_ALL, "min_total_share": 0.2}).any()


def test_a_segment_inside_another_stays_its_own() -> None:
    """Filling a hole takes nothing from who lies in it, in either order of numbers."""
    for outer, inner in ((1, 2), (2, 1)):
        labels = np.zeros((50, 50), np.uint8)
        labels[5:45, 5:45] = outer
        labels[20:30, 20:30] = inner
        np.testing.assert_array_equal(keep_large_regions(labels, **KEEP_ALL), labels)


def test_nothing_stays_nothing() -> None:
    """An empty map is no special case."""
    empty = np.zeros((10, 12), np.uint8)
    np.testing.assert_array_equal(keep_large_regions(empty, **KEEP_ALL), empty)
