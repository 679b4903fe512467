"""Planes larger than the network sees: tiles, blended, against the whole plane at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np
import pytest
from scipy.ndimage import uniform_filter

from node.manifest import NetworkManifest, read_manifest
from node.runtimes import Engine, Scores
from node.runtimes.tiled import Tiled, starts
from node.sdk import Volume
from node.segmentation import VolumeModel
from tests.packages.conftest import MODELS


class _Local:
    """A network whose scores of a pixel depend on its neighbours up to ``reach`` away, so that
    tiles and the whole plane can be compared: further in than that, both must agree."""

    batch_slices = 2
    engine = Engine("torch", "0", "test", "f32")

    def __init__(self, reach: int) -> None:
        self._reach = reach

    def scores(self, slabs: Iterable[Scores]) -> Iterator[Scores]:
        for slab in slabs:
            mean = uniform_filter(slab[:, :1], (0, 0, 2 * self._reach + 1, 2 * self._reach + 1))
            yield np.concatenate([1 - mean, mean, slab[:, 1:2]], axis=1).astype(np.float32)


def _planes(count: int, size: int) -> Scores:
    rough = np.random.default_rng(3).random((count, 2, size // 8, size // 8), np.float32)
    return np.ascontiguousarray(np.kron(rough, np.ones((8, 8), np.float32)))


@pytest.mark.parametrize(("plane", "tile"), [(96, 64), (160, 64), (128, 64), (64, 64)])
def test_tiles_give_the_scores_of_the_whole_plane(plane: int, tile: int) -> None:
    """Exactly where the network looks at single pixels; nearly where it has a view, for what it
    says at the edge of a tile counts little. The labels are the same."""
    slab = _planes(3, plane)
    for reach, tolerance in ((0, 1e-6), (3, 0.03)):
        [whole] = _Local(reach).scores([slab])
        [tiled] = Tiled(_Local(reach), tile, plane).scores([slab])
        assert tiled.shape == whole.shape
        assert np.abs(tiled - whole).mean() <= tolerance / 10
        inner = np.abs(tiled - whole)[..., 8:-8, 8:-8]
        assert inner.max() <= tolerance
        agreed = (tiled.argmax(1) == whole.argmax(1)).mean()
        assert agreed >= (1 if reach == 0 else 0.995)


@pytest.mark.parametrize("batches", [(1, 1, 1, 1, 1), (2, 3), (5,)])
def test_tiles_do_not_depend_on_the_batch(batches: tuple[int, ...]) -> None:
    """Bit for bit."""
    planes = _planes(5, 160)
    [expected] = Tiled(_Local(3), 64, 160).scores([planes])
    cuts = np.split(planes, np.cumsum(batches)[:-1])
    found = np.concatenate(list(Tiled(_Local(3), 64, 160).scores(cuts)))
    np.testing.assert_array_equal(found, expected)


def test_every_pixel_is_in_a_tile_and_tiles_overlap_by_half() -> None:
    """From edge to edge, whatever the sizes."""
    for plane in range(64, 400, 7):
        corners = starts(plane, 64)
        assert (corners[0], corners[-1]) == (0, plane - 64)
        assert all(after - before <= 32 for before, after in pairwise(corners))


def test_a_model_that_asks_for_a_larger_field_labels_what_lies_outside_the_tile() -> None:
    """field_size of the manifest: a square in the corner of a wide plane is found."""
    manifest = read_manifest(MODELS / "ct_lungs")
    assert isinstance(manifest, NetworkManifest)
    preprocessing = manifest.preprocessing.model_copy(
        update={
            "in_plane_size": 64,
            "field_size": 128,
            "in_plane_spacing_mm": 2.0,
            "context_slices": 1,
        }
    )
    wide = manifest.model_copy(update={"preprocessing": preprocessing})
    array = np.full((6, 128, 128), -1000, np.int16)
    array[:, 2:126, 2:126] = 0  # a body as wide as the field
    array[1:5, 6:16, 6:26] = 400

    sizes = set()

    class Bright(_Local):
        def scores(self, slabs: Iterable[Scores]) -> Iterator[Scores]:
            for slab in slabs:
                sizes.add(slab.shape[1:])
                yield np.concatenate([slab * 0 + 0.9, slab, slab * 0], axis=1)

    affine = np.diag([4.0, 2.0, 2.0, 1.0])[[2, 1, 0, 3]]
    volume = Volume(array, affine, (4.0, 2.0, 2.0), tuple(str(n) for n in range(6)))
    post = wide.postprocessing.model_copy(
        update={"min_component_ml": 0.0, "min_component_share": 0.0, "min_segment_ml": 0.0}
    )
    wide = wide.model_copy(update={"postprocessing": post})
    found = VolumeModel(wide, Tiled(Bright(0), 64, 128)).segment(volume).array
    assert sizes == {(1, 64, 64)}
    whole = wide.model_copy(
        update={
            "preprocessing": preprocessing.model_copy(
                update={"in_plane_size": 128, "field_size": None}
            )
        }
    )
    expected = VolumeModel(whole, Bright(0)).segment(volume).array
    assert expected[2, 10, 10] == 1
    assert np.array_equal(found, expected)
