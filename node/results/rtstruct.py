"""The segments as contours: an RT Structure Set, for planning systems and viewers that want one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import contourpy
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import RTStructureSetStorage
from scipy.spatial import cKDTree

from node.manifest import Segment
from node.results.report import complete_report, new_document, quiet, reference_to
from node.results.seg import Algorithm
from node.results.source import SourceSeries
from node.results.uids import ResultIdentity

STRUCTURE_SET_LABEL = "AI"
_ANATOMY = frozenset({"123037004", "91723000"})  # CID 7150: Anatomical Structure, old and new code


def encode_rtstruct(
    labels: NDArray[np.uint8],
    source_instances: Sequence[Dataset],
    segments: Sequence[Segment],
    algorithm: Algorithm,
    identity: ResultIdentity,
) -> Dataset:
    """Closed planar contours of each segment on each slice, in the patient's coordinates.

    A hole is reached from its outer contour by a channel of no width, walked in and out (the
    keyhole of C.8.8.6.3), which every reader fills right. No contour lies inside another's area.

    Parameters
    ----------
    labels
        uint8, shape (slices, rows, columns).
    source_instances
        De-identified headers, ``source_instances[i]`` being the slice of ``labels[i]``.

    References
    ----------
    PS3.3 2026b A.19 (RT Structure Set), C.8.8.5, C.8.8.6 (ROI Contour).
    """
    sources = SourceSeries.of(source_instances).headers
    with quiet():
        document = _document(sources, segments, algorithm, identity)
    document.ROIContourSequence = [
        _roi_contour(labels == segment.number, sources, segment) for segment in segments
    ]
    return complete_report(document, algorithm, identity)


def contours_of(mask: NDArray[np.bool_]) -> Iterator[NDArray[np.float64]]:
    """Closed outlines of one slice's mask, as points (n, 2) of (row, column), first not repeated;
    one for each connected part, with channels to its holes.

    They run half-way between pixel centres inside and outside, so that a pixel's centre is inside
    the outline when the pixel is inside the mask.
    """
    padded = np.pad(mask, 1).astype(np.float32)
    generator = contourpy.contour_generator(z=padded, fill_type=contourpy.FillType.OuterOffset)
    for points, starts in zip(*generator.filled(0.5, 2.0), strict=True):
        outer, *holes = (
            np.asarray(points[first : after - 1], float)[:, ::-1] - 1
            for first, after in pairwise(starts)
        )
        yield _with_keyholes(outer, holes)


def _with_keyholes(
    outer: NDArray[np.float64], holes: list[NDArray[np.float64]]
) -> NDArray[np.float64]:
    """One outline that visits each hole by the shortest channel, the nearest hole first."""
    while holes:
        channels = [_channel(outer, hole) for hole in holes]
        nearest = min(range(len(holes)), key=lambda place: channels[place][0])
        _, leave, enter = channels[nearest]
        hole = np.roll(holes.pop(nearest), -enter, axis=0)
        outer = np.concatenate([outer[: leave + 1], hole, hole[:1], outer[leave:]])
    return outer


def _channel(outer: NDArray[np.float64], hole: NDArray[np.float64]) -> tuple[float, int, int]:
    """Length of the shortest way between two outlines, and its ends' places in them."""
    lengths, places = cKDTree(outer).query(hole)
    enter = int(np.argmin(lengths))
    return float(lengths[enter]), int(places[enter]), enter


def _roi_contour(mask: NDArray[np.bool_], sources: Sequence[Dataset], segment: Segment) -> Dataset:
    roi = Dataset()
    roi.ROIDisplayColor = list(segment.rgb)
    roi.ReferencedROINumber = segment.number
    contours = [
        _contour(points, sources[index])
        for index in np.flatnonzero(mask.any(axis=(1, 2))).tolist()
        for points in contours_of(mask[index])
    ]
    if contours:  # type 3, and an empty one is an error to some readers
        roi.ContourSequence = contours
    return roi


def _contour(points: NDArray[np.float64], source: Dataset) -> Dataset:
    row_cosines, column_cosines = np.reshape(
        np.asarray(source.ImageOrientationPatient, float), (2, 3)
    )
    row_mm, column_mm = (float(value) for value in source.PixelSpacing)
    points_mm = (
        np.asarray(source.ImagePositionPatient, float)
        + points[:, :1] * row_mm * column_cosines
        + points[:, 1:] * column_mm * row_cosines
    )
    contour = Dataset()
    contour.ContourImageSequence = [reference_to(source)]
    contour.ContourGeometricType = "CLOSED_PLANAR"
    contour.NumberOfContourPoints = len(points)
    contour.ContourData = [f"{value:.3f}" for value in points_mm.ravel()]
    return contour


def _document(
    sources: Sequence[Dataset],
    segments: Sequence[Segment],
    algorithm: Algorithm,
    identity: ResultIdentity,
) -> Dataset:
    first = sources[0]
    document = new_document(RTStructureSetStorage, "RTSTRUCT", first, identity)
    document.OperatorsName = None
    document.StructureSetLabel = STRUCTURE_SET_LABEL
    document.StructureSetName = f"{algorithm.name} {algorithm.version}"
    document.StructureSetDate = identity.created.strftime("%Y%m%d")
    document.StructureSetTime = identity.created.strftime("%H%M%S")
    document.FrameOfReferenceUID = first.FrameOfReferenceUID
    document.PositionReferenceIndicator = None
    document.ApprovalStatus = "UNAPPROVED"
    document.ReferencedFrameOfReferenceSequence = [_referenced_frame(sources)]
    document.StructureSetROISequence = [
        _roi(segment, first.FrameOfReferenceUID, algorithm) for segment in segments
    ]
    document.RTROIObservationsSequence = [_observation(segment) for segment in segments]
    return document


def _roi(segment: Segment, frame_of_reference_uid: str, algorithm: Algorithm) -> Dataset:
    roi = Dataset()
    roi.ROINumber = segment.number
    roi.ReferencedFrameOfReferenceUID = frame_of_reference_uid
    roi.ROIName = segment.label
    roi.ROIGenerationAlgorithm = "AUTOMATIC"
    roi.ROIGenerationDescription = f"{algorithm.name} {algorithm.version}"
    return roi


def _observation(segment: Segment) -> Dataset:
    observation = Dataset()
    observation.ObservationNumber = segment.number
    observation.ReferencedROINumber = segment.number
    # Type 2: of what is no anatomy, a lesion say, the terms of the standard are a planner's choice.
    observation.RTROIInterpretedType = "ORGAN" if segment.category.value in _ANATOMY else None
    observation.ROIInterpreter = None
    return observation


def _referenced_frame(sources: Sequence[Dataset]) -> Dataset:
    first = sources[0]
    series = Dataset()
    series.SeriesInstanceUID = first.SeriesInstanceUID
    series.ContourImageSequence = [reference_to(source) for source in sources]
    study = Dataset()
    study.ReferencedSOPClassUID = "1.2.840.10008.3.1.2.3.1"  # Detached Study Management, as all do
    study.ReferencedSOPInstanceUID = first.StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame = Dataset()
    frame.FrameOfReferenceUID = first.FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    return frame
