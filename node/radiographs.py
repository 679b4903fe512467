"""From a radiograph to a label map: turn, fit into the square, run the network, bring it home."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from node.errors import ModelFault
from node.imaging.radiograph import Turn, normalised, square_grid
from node.imaging.regions import keep_large_regions
from node.imaging.resample import PlaneGrid
from node.manifest import RadiographManifest
from node.runtimes import Runtime, Scores
from node.sdk import LabelMap, Progress, Radiograph


@dataclass(frozen=True)
class RadiographModel:
    """A verified network with what runs it, ready to segment. Not for sharing between threads."""

    manifest: RadiographManifest
    runtime: Runtime

    def segment(
        self, radiograph: Radiograph, on_progress: Progress = lambda share: None
    ) -> LabelMap:
        """Label every pixel; deterministic for one runtime on one machine.

        The network tells sides by where they lie on the display. Where the image does not say which
        side is the patient's left, all that it finds becomes the segment without sides.

        Raises
        ------
        ModelFault
            The network's output is not (1, segments + 1, size, size).
        """
        post = self.manifest.postprocessing
        turn, grid, slab = network_input(radiograph, self.manifest)
        [scores] = list(self.runtime.scores([slab]))
        promised = (1, len(self.manifest.segments) + 1, *slab.shape[2:])
        if scores.shape != promised:
            raise ModelFault(
                f"Model {self.manifest.name}: the network returns shape {scores.shape}, its "
                f"manifest promises {promised}"
            )
        labels = keep_large_regions(
            _labels_on_source(scores[0], grid),
            min_region_share=post.min_region_share,
            min_segment_share=post.min_segment_share,
            min_total_share=post.min_total_share,
        )
        if radiograph.toward is None:
            labels[labels > 0] = self.manifest.segment_without_sides.number
        on_progress(1.0)
        array = np.ascontiguousarray(turn.undo(labels))[np.newaxis]
        return LabelMap(array, (radiograph.sop_instance_uid,))


def network_input(
    radiograph: Radiograph, manifest: RadiographManifest
) -> tuple[Turn, PlaneGrid, Scores]:
    """What the network sees, float32 (1, 1, size, size) in [0, 1], and the way back from it."""
    preprocessing = manifest.preprocessing
    turn = Turn.of(radiograph.toward)
    plane = turn.apply(normalised(radiograph.array, radiograph.padding, preprocessing.percentiles))
    spacing_mm = radiograph.pixel_spacing_mm
    if spacing_mm is not None and turn.swaps_axes:
        spacing_mm = spacing_mm[1], spacing_mm[0]
    grid = square_grid((plane.shape[0], plane.shape[1]), spacing_mm, preprocessing.size)
    return turn, grid, np.ascontiguousarray(grid.from_source(plane[None, None], 0.0))


def _labels_on_source(scores: Scores, grid: PlaneGrid) -> npt.NDArray[np.uint8]:
    """Largest class per source pixel, from logits (classes, size, size); background is 0."""
    best = np.zeros(grid.source_shape, np.float32)
    labels = np.zeros(grid.source_shape, np.uint8)
    for number in range(1, len(scores)):
        # Scores over background; one class at a time, for a radiograph may have 20 million pixels.
        candidate = grid.to_source(scores[number] - scores[0], outside=0.0)
        larger = candidate > best
        labels[larger] = number
        np.copyto(best, candidate, where=larger)
    return labels
