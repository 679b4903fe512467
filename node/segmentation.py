"""From a volume to a label map: sample, run the network slab by slab, bring the labels home."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from node.errors import ModelFault
from node.imaging.components import keep_large_components
from node.imaging.intensity import window
from node.imaging.pixels import AIR_HU
from node.imaging.resample import PlaneGrid, grid_on_body, patient_orientation
from node.imaging.sliding_window import context_offset, slab_indices
from node.runtimes import Runtime, Scores
from node.sdk import LabelMap, NetworkManifest, Progress, Volume


@dataclass(frozen=True)
class VolumeModel:
    """A verified network with what runs it, ready to segment. Not for sharing between threads."""

    manifest: NetworkManifest
    runtime: Runtime

    def segment(self, volume: Volume, on_progress: Progress = lambda share: None) -> LabelMap:
        """Label every voxel of a volume; deterministic for one runtime on one machine.

        The volume is turned to patient axes by its affine, sampled on the network's grid, labelled
        slab by slab, and the class scores are brought back to the source grid before the largest
        is taken, so that edges follow the source's pixels.

        Raises
        ------
        ModelFault
            The network's output is not (slices, segments + 1, size, size).
        """
        preprocessing = self.manifest.preprocessing
        orientation = patient_orientation(volume.affine)
        array = orientation.apply(volume.array)
        slices_mm, rows_mm, columns_mm = (volume.spacing_mm[axis] for axis in orientation.axes)
        grid = grid_on_body(
            array,
            (slices_mm, rows_mm, columns_mm),
            preprocessing.in_plane_size,
            preprocessing.in_plane_spacing_mm,
            preprocessing.body_above_hu,
        )
        offset = context_offset(slices_mm, preprocessing.context_mm)
        labels = np.zeros(array.shape, np.uint8)
        done = 0
        for scores in self._checked(self.runtime.scores(self._slabs(array, grid, offset))):
            labels[done : done + len(scores)] = _labels_on_source(scores, grid)
            done += len(scores)
            on_progress(done / len(labels))
        post = self.manifest.postprocessing
        labels = keep_large_components(
            labels,
            volume.voxel_ml,
            post.min_component_ml,
            post.min_component_share,
            post.min_segment_ml,
        )
        return LabelMap(np.ascontiguousarray(orientation.undo(labels)), volume.sop_instance_uids)

    def _slabs(
        self, array: npt.NDArray[np.int16], grid: PlaneGrid, offset: int
    ) -> Iterator[Scores]:
        """Batches for the network, sampled when it asks for them."""
        preprocessing = self.manifest.preprocessing
        size = preprocessing.in_plane_size
        planes = np.empty((len(array), size, size), np.float32)
        sampled = 0
        batches = slab_indices(
            len(array), preprocessing.context_slices, offset, self.runtime.batch_slices
        )
        for indices in batches:
            wanted = int(indices.max()) + 1
            if wanted > sampled:
                fresh = grid.from_source(array[sampled:wanted], AIR_HU)
                planes[sampled:wanted] = window(fresh, *preprocessing.window_hu)
                sampled = wanted
            yield planes[indices]

    def _checked(self, batches: Iterator[Scores]) -> Iterator[Scores]:
        promised = (len(self.manifest.segments) + 1, *self.manifest.slab_shape[1:])
        for scores in batches:
            if scores.shape[1:] != promised:
                raise ModelFault(
                    f"Model {self.manifest.name}: the network returns shape {scores.shape[1:]} "
                    f"for each slice, its manifest promises {promised}"
                )
            yield scores


def _labels_on_source(scores: Scores, grid: PlaneGrid) -> npt.NDArray[np.uint8]:
    """Largest class per source pixel, shape (slices, rows, columns); background off the grid."""
    # Scores over background, so that 0 beyond the grid means background.
    relative = scores[:, 1:] - scores[:, :1]
    labels = np.zeros((len(scores), *grid.source_shape), np.uint8)
    if not (relative > 0).any():
        return labels
    on_source = grid.to_source(relative, outside=0.0)
    best = np.zeros(labels.shape, np.float32)
    for number in range(1, scores.shape[1]):
        candidate = on_source[:, number - 1]
        larger = candidate > best
        labels[larger] = number
        np.copyto(best, candidate, where=larger)
    return labels
