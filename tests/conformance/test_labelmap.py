"""Label maps where a destination asks for them, Segmentations in parts, what is said of them."""

from __future__ import annotations

from dataclasses import replace

import highdicom as hd
import numpy as np
import pytest
from pydicom.dataset import Dataset

from node.errors import Quarantined
from node.kinds import CHOOSABLE, OF_MODELS, ResultKind
from node.manifest import ModelManifest
from node.pipeline.outbound import Profile
from node.results.objects import Found, possible_kinds
from node.results.placement import check_frames
from node.results.remarks import remarks
from node.results.seg import encode_labelmap
from tests.part10 import part10
from tests.result_case import Case
from tests.seg_case import (
    ALGORITHM,
    IDENTITY,
    ORIENTATIONS,
    SEGMENTS,
    labels_for,
    series,
    swap_references,
)


@pytest.mark.parametrize("step_mm", [2.5, -2.5], ids=["feet to head", "head to feet"])
@pytest.mark.parametrize("orientation", ["supine", "sagittal", "oblique"])
def test_highdicom_reads_the_same_labels(orientation: str, step_mm: float) -> None:
    """Columns that are no multiple of 8; each slice asked for by its own instance."""
    headers = series(ORIENTATIONS[orientation], step_mm=step_mm, columns=23)
    labels = labels_for(headers)
    made = encode_labelmap(labels, headers, SEGMENTS, ALGORITHM, IDENTITY)
    read = hd.seg.Segmentation.from_dataset(made)
    shown = read.get_pixels_by_source_instance(
        [header.SOPInstanceUID for header in headers],
        combine_segments=True,
        ignore_spatial_locations=True,
        assert_missing_frames_are_empty=True,
    )
    assert np.array_equal(shown, labels)
    assert made.NumberOfFrames == len(headers) - 1  # one slice is empty


def test_the_background_is_said_by_the_padding_value_alone() -> None:
    """An item for it shifts colours in OHIF and names in 3D Slicer."""
    headers = series()
    made = encode_labelmap(labels_for(headers), headers, SEGMENTS, ALGORITHM, IDENTITY)
    assert [item.SegmentNumber for item in made.SegmentSequence] == [1, 2]
    assert made.PixelPaddingValue == 0
    assert made.SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.7"
    assert (made.SegmentationType, made.BitsAllocated) == ("LABELMAP", 8)


def _relabel_a_pixel(made: Dataset) -> None:
    data = bytearray(made.PixelData)
    data[40] ^= 3
    made.PixelData = bytes(data)


def _lose_the_last_frame(made: Dataset) -> None:
    made.PerFrameFunctionalGroupsSequence = made.PerFrameFunctionalGroupsSequence[:-1]


@pytest.mark.parametrize("spoil", [swap_references, _relabel_a_pixel, _lose_the_last_frame])
def test_a_misplaced_label_map_is_quarantined(spoil: object) -> None:
    """It is checked as a BINARY Segmentation is."""
    headers = series()
    labels = labels_for(headers)
    made = encode_labelmap(labels, headers, SEGMENTS, ALGORITHM, IDENTITY)
    check_frames(part10(made), labels, headers)
    spoil(made)  # type: ignore[operator]
    with pytest.raises(Quarantined):
        check_frames(part10(made), labels, headers)


def test_a_destination_gets_label_maps_only_as_it_asks() -> None:
    """Never by itself; always; or where columns are no multiple of 8: the report goes along."""
    kinds = (ResultKind.SEG, ResultKind.SR, ResultKind.PDF)
    instead = (ResultKind.LABELMAP, ResultKind.LABELMAP_SR, ResultKind.PDF)
    for segmentation_type, of_512, of_510 in (
        ("binary", kinds, kinds),
        ("labelmap", instead, instead),
        ("auto", kinds, instead),
    ):
        profile = Profile(kinds, 1, segmentation_type)
        assert (profile.of_columns(512).kinds, profile.of_columns(510).kinds) == (of_512, of_510)


def given(case: Case, **results: object) -> Found:
    """The case by a model whose manifest says more in [results]."""
    manifest = case.found.origin.manifest
    changed = manifest.results.model_copy(update=results)
    manifest = manifest.model_copy(update={"results": changed})
    return replace(case.found, origin=replace(case.found.origin, manifest=manifest))


@pytest.mark.parametrize("kind", [ResultKind.SEG, ResultKind.LABELMAP])
def test_each_group_of_segments_has_a_segmentation_of_its_own(kind: ResultKind, case: Case) -> None:
    """In one series; the report refers to each segment where it is."""
    found = given(case, groups=((2,), (1,)))
    first, second = found.encoded(kind)
    assert first.SeriesInstanceUID == second.SeriesInstanceUID
    assert (first.InstanceNumber, second.InstanceNumber) == (1, 2)
    labels = [[item.SegmentLabel for item in one.SegmentSequence] for one in (first, second)]
    assert labels == [["Right lung"], ["Left lung"]]
    tracked = {one.SegmentSequence[0].TrackingUID for one in (first, second)}
    assert len(tracked) == 2
    report = ResultKind.SR if kind is ResultKind.SEG else ResultKind.LABELMAP_SR
    (made,) = found.encoded(report)
    groups = hd.sr.Comprehensive3DSR.from_dataset(
        made
    ).content.get_volumetric_roi_measurement_groups()
    refers = [group.referenced_segment for group in groups]
    assert [one.referenced_sop_instance_uid for one in refers] == [
        second.SOPInstanceUID,
        first.SOPInstanceUID,
    ]
    assert {one.referenced_segment_numbers[0] for one in refers} == {1}
    assert {group.tracking_uid for group in groups} == tracked


def test_a_group_of_which_nothing_was_found_has_none(case: Case) -> None:
    """The other one goes home; the text says what is absent."""
    labels = np.where(case.labels == 2, 0, case.labels)
    found = replace(given(case, groups=((1,), (2,))), labels=labels)
    (made,) = found.encoded(ResultKind.SEG)
    assert [item.SegmentLabel for item in made.SegmentSequence] == ["Left lung"]


def test_all_slices_have_a_picture_where_the_model_says_so(case: Case) -> None:
    """Also the one on which nothing was found."""
    pictures = list(given(case, captures="all").encoded(ResultKind.CAPTURE))
    assert len(pictures) == len(case.labels) == len(list(case.encoded("capture"))) + 1


def test_what_a_model_does_not_give_is_not_made(case: Case) -> None:
    """Kinds of the manifest, as far as the images allow them; a label map is a Segmentation."""

    def kinds(manifest: ModelManifest) -> set[ResultKind]:
        return set(possible_kinds(manifest))

    label_maps = {ResultKind.LABELMAP, ResultKind.LABELMAP_SR}
    assert kinds(case.found.origin.manifest) == {*OF_MODELS, *label_maps}
    some = given(case, kinds=(ResultKind.SEG, ResultKind.PDF)).origin.manifest
    assert kinds(some) == {ResultKind.SEG, ResultKind.PDF, ResultKind.LABELMAP}
    assert {*CHOOSABLE, *label_maps} == set(ResultKind)


def test_what_a_viewer_may_not_show_is_said() -> None:
    """Columns that are no multiple of 8, more than 400 frames, more than 1000; not else."""
    made = Dataset()
    for columns, frames, said in (
        (512, 400, []),
        (512, 401, ["Weasis"]),
        (512, 1001, ["1000"]),
        (510, 10, ["multiple of 8"]),
        (510, 500, ["multiple of 8", "Weasis"]),
    ):
        made.Columns, made.NumberOfFrames = columns, frames
        found = list(remarks(ResultKind.SEG, [made]))
        assert len(found) == len(said)
        assert all(words in remark for words, remark in zip(said, found, strict=True))
    assert len(list(remarks(ResultKind.LABELMAP, [made]))) == 1
