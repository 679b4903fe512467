"""From a volume to a label map: sample, run the network slab by slab, bring the labels home."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from node.errors import ModelFault
from node.imaging.arriving import ArrivingVolume
from node.imaging.components import keep_large_components
from node.imaging.intensity import window
from node.imaging.pixels import AIR_HU
from node.imaging.resample import (
    Orientation,
    PlaneGrid,
    center_slices,
    grid_on_body,
    patient_orientation,
)
from node.imaging.sliding_window import context_offset, slab_indices
from node.manifest import NetworkManifest
from node.runtimes import Runtime, Scores
from node.sdk import LabelMap, Progress, Volume

Upright = Callable[[int, int], npt.NDArray[np.int16]]


@dataclass(frozen=True)
class VolumeModel:
    """A verified network with what runs it, ready to segment. Not for sharing between threads."""

    manifest: NetworkManifest
    runtime: Runtime

    def segment(
        self, volume: Volume | ArrivingVolume, on_progress: Progress = lambda share: None
    ) -> LabelMap:
        """Label every voxel of a volume; deterministic for one runtime on one machine.

        The volume is turned to patient axes by its affine, sampled on the network's grid, labelled
        slab by slab, and the class scores are brought back to the source grid before the largest
        is taken, so that edges follow the source's pixels.

        Raises
        ------
        ModelFault
            The network's output is not (slices, segments + 1, size, size).
        UnsupportedTransferSyntax, DamagedInstance, UnsuitableInput
            A slice of an arriving volume does not decode.
        """
        preprocessing = self.manifest.preprocessing
        orientation = patient_orientation(volume.affine)
        upright = _upright(volume, orientation)
        count, *_ = (volume.shape[axis] for axis in orientation.axes)
        slices_mm, rows_mm, columns_mm = (volume.spacing_mm[axis] for axis in orientation.axes)
        grid = grid_on_body(
            np.concatenate([upright(index, index + 1) for index in center_slices(count)]),
            (slices_mm, rows_mm, columns_mm),
            preprocessing.plane_size,
            preprocessing.in_plane_spacing_mm,
            preprocessing.body_above_hu,
        )
        offset = context_offset(slices_mm, preprocessing.context_mm)
        labels = np.zeros((count, *grid.source_shape), np.uint8)
        done = 0
        slabs = self._slabs(count, upright, grid, offset)
        for scores in self._checked(self.runtime.scores(slabs)):
            labels[done : done + len(scores)] = _labels_on_source(scores, grid)
            done += len(scores)
            on_progress(done / count)
        post = self.manifest.postprocessing
        labels = keep_large_components(
            labels,
            math.prod(volume.spacing_mm) / 1000,
            post.min_component_ml,
            post.min_component_share,
            post.min_segment_ml,
        )
        return LabelMap(np.ascontiguousarray(orientation.undo(labels)), volume.sop_instance_uids)

    def _slabs(
        self, count: int, upright: Upright, grid: PlaneGrid, offset: int
    ) -> Iterator[Scores]:
        """Batches for the network; slices are waited for, and sampled, when it asks for them."""
        preprocessing = self.manifest.preprocessing
        channels, size = preprocessing.context_slices, preprocessing.plane_size
        planes = np.empty((count, size, size), np.float32)
        sampled = 0
        for indices in slab_indices(count, channels, offset, self.runtime.batch_slices):
            wanted = int(indices.max()) + 1
            if wanted > sampled:
                fresh = grid.from_source(upright(sampled, wanted), AIR_HU)
                planes[sampled:wanted] = window(fresh, *preprocessing.window_hu)
                sampled = wanted
            yield planes[indices]

    def _checked(self, batches: Iterator[Scores]) -> Iterator[Scores]:
        size = self.manifest.preprocessing.plane_size
        promised = (len(self.manifest.segments) + 1, size, size)
        for scores in batches:
            if scores.shape[1:] != promised:
                raise ModelFault(
                    f"Model {self.manifest.name}: the network returns shape {scores.shape[1:]} "
                    f"for each slice, its manifest promises {promised}"
                )
            yield scores


def _upright(volume: Volume | ArrivingVolume, orientation: Orientation) -> Upright:
    """Slices ``start`` to ``stop`` of the volume turned to patient axes, from the feet."""
    if orientation.axes[0] != 0:
        # A slice of the patient has a line of each slice of the series: wait for all.
        array = orientation.apply(volume.complete().array)
        return lambda start, stop: array[start:stop]
    count = volume.shape[0]

    def slices(start: int, stop: int) -> npt.NDArray[np.int16]:
        if orientation.flips[0]:
            start, stop = count - stop, count - start
        return orientation.apply(volume.slices(start, stop))

    return slices


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
