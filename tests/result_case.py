"""One CT series with lungs found in it, as every kind of result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from node.imaging.volume import volume_from_series
from node.kinds import ResultKind
from node.manifest import Segment
from node.packages import find_models
from node.results.explanation import EXPLAINING, explanation
from node.results.measurements import measure
from node.results.objects import Found, Origin
from node.sdk import LabelMap, Volume
from tests.phantoms import chest_truth, ct_series

MODELS = Path(__file__).resolve().parents[1] / "models"
WINDOW = (-1000.0, 400.0)
EXPLAINED = [f"explained by {kind}" for kind in EXPLAINING]
KINDS = [*(kind for kind in ResultKind if kind is not ResultKind.REJECTION), *EXPLAINED]
#: What dicom3tools calls each.
IODS = {
    ResultKind.SEG: "Segmentation",
    ResultKind.SR: "Comprehensive3DSR",
    ResultKind.TEXT_SR: "BasicTextSR",
    ResultKind.PDF: "EncapsulatedPDF",
    ResultKind.CAPTURE: "SCImage",
    ResultKind.RTSTRUCT: "RTStructureSet",
    ResultKind.LABELMAP_SR: "Comprehensive3DSR",
}
#: dicom3tools of Debian 12 is older than Supplement 243.
UNKNOWN_TO_DCIODVFY = {
    "labelmap": {"Error - Information Object Not found"},
    "labelmap_sr": {
        "Error - Shall not be present for Referenced SOP Class that is not segmentation "
        "- attribute <ReferencedSegmentNumber>"
    },
}
REASON = {"cause": "There are 2 slices; ct_lungs needs 10 or more", "remedy": "Send the series."}


@dataclass(frozen=True)
class Case:
    """One series with what was found in it."""

    volume: Volume
    found: Found

    @property
    def labels(self) -> np.ndarray:
        return self.found.labels

    @property
    def sources(self) -> Sequence[Dataset]:
        return self.found.sources

    @property
    def segments(self) -> tuple[Segment, ...]:
        return self.found.origin.manifest.segments

    def encoded(self, kind: str) -> list[Dataset]:
        if kind in EXPLAINED:
            explaining = ResultKind(kind.removeprefix("explained by "))
            return [explanation(explaining, REASON, self.sources, self.found.origin)]
        return list(replace(self.found).encoded(ResultKind(kind)))  # a copy: nothing is cached


def with_labels(case: Case, labels: np.ndarray, segments: Sequence[Segment]) -> Found:
    manifest = case.found.origin.manifest.model_copy(update={"segments": tuple(segments)})
    measured = measure(case.volume, LabelMap(labels, case.volume.sop_instance_uids), segments)
    return Found(replace(case.found.origin, manifest=manifest), labels, case.sources, measured)


def make_case() -> Case:
    """A small chest with both lungs, on all slices but the first; series 3, images from 201."""
    series = ct_series()
    for instance in series:
        instance.SeriesNumber, instance.InstanceNumber = 3, instance.InstanceNumber + 200
    volume = volume_from_series(series)
    by_uid = {instance.SOPInstanceUID: instance for instance in series}
    sources = [by_uid[uid] for uid in volume.sop_instance_uids]
    labels = chest_truth(sources)
    labels[0] = 0  # a slice with nothing to show
    manifest = find_models(MODELS)["ct_lungs"]
    measured = measure(volume, LabelMap(labels, volume.sop_instance_uids), manifest.segments)
    origin = Origin("a job's key", datetime(2026, 11, 3, 12, 30, 1), "0.1.0", manifest)
    return Case(volume, Found(origin, labels, sources, measured))


def with_forty_segments(case: Case) -> Found:
    """Forty segments, side by side in every slice."""
    segments = [
        case.segments[0].model_copy(
            update={"number": number, "label": f"Part {number}", "rgb": (255, 0, 255)}
        )
        for number in range(1, 41)
    ]
    labels = np.zeros_like(case.labels)
    for segment in segments:
        labels[:, 5:30, segment.number] = segment.number
    return with_labels(case, labels, segments)
