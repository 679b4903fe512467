"""Which frames a Segmentation has: one per slice and segment found, always the same bytes."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from pydicom import dcmread

from node.errors import EmptyResult, ModelFault
from node.results.seg import build_seg, encode_seg
from node.results.source import SourceSeries
from tests.part10 import part10
from tests.seg_case import ALGORITHM, IDENTITY, ORIENTATIONS, SEGMENTS, labels_for, series


def test_the_same_job_makes_the_same_bytes() -> None:
    """A step that runs twice makes one instance, not two: no chance, no clock."""
    headers = series()
    labels = labels_for(headers)
    once, twice = (
        part10(encode_seg(labels, headers, SEGMENTS, ALGORITHM, IDENTITY)) for _ in range(2)
    )
    assert once == twice


def test_segment_without_voxels_keeps_its_item() -> None:
    """That a structure was not found is a result: the item stays, without frames."""
    headers = series()
    labels = np.where(labels_for(headers) == 1, 1, 0).astype(np.uint8)
    result = encode_seg(labels, headers, SEGMENTS, ALGORITHM, IDENTITY)
    assert [item.SegmentNumber for item in result.SegmentSequence] == [1, 2]
    numbers = {
        item.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        for item in result.PerFrameFunctionalGroupsSequence
    }
    assert numbers == {1}


def test_single_segment_and_single_slice_are_encoded() -> None:
    """The smallest case: one slice, one segment, whose number is shared by all frames."""
    headers = series(slices=1)
    labels = np.zeros((1, 16, 24), np.uint8)
    labels[0, 3:7, 5:9] = 1
    result = encode_seg(labels, headers, SEGMENTS[:1], ALGORITHM, IDENTITY)
    assert result.NumberOfFrames == 1
    assert np.array_equal(np.squeeze(result.pixel_array), labels[0])


def test_nothing_found_is_an_empty_result() -> None:
    """An all-empty label map makes no object."""
    headers = series()
    with pytest.raises(EmptyResult):
        encode_seg(np.zeros((6, 16, 24), np.uint8), headers, SEGMENTS, ALGORITHM, IDENTITY)


def test_label_without_a_segment_is_refused() -> None:
    """A voxel that nobody can name does not leave the node."""
    labels = labels_for(series())
    labels[2, 0, 0] = 3
    with pytest.raises(ModelFault, match="label 3"):
        encode_seg(labels, series(), SEGMENTS, ALGORITHM, IDENTITY)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("step_mm", [2.5, -2.5])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_frames_are_those_that_highdicom_would_have_built(
    orientation: str, step_mm: float, count: int
) -> None:
    """Copied from one frame, they are equal in every attribute to frames built one by one."""
    headers = series(ORIENTATIONS[orientation], step_mm=step_mm)
    labels = labels_for(headers)
    labels[labels > count] = 0
    segments = SEGMENTS[:count]
    built = build_seg(labels, SourceSeries.of(headers).headers, segments, ALGORITHM, IDENTITY)
    read = dcmread(BytesIO(part10(built)))
    assert encode_seg(labels, headers, segments, ALGORITHM, IDENTITY) == read
