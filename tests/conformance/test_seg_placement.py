"""Every mask lies on its slice, read back by DCMTK and highdicom; another stays here."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from node.errors import GeometryError, ModelFault, Quarantined
from node.results.placement import check_frames
from node.results.seg import encode_seg
from tests.part10 import part10
from tests.seg_case import (
    ALGORITHM,
    IDENTITY,
    ORIENTATIONS,
    SEGMENTS,
    dcmtk_json,
    labels_for,
    series,
    swap_references,
)


def frames_by_dcmtk(path: Path) -> dict[tuple[str, int], tuple[list[float], np.ndarray]]:
    """(referenced SOP Instance UID, segment number) → (position, mask), read by DCMTK."""
    document = dcmtk_json(path)
    rows, columns = (document[tag]["Value"][0] for tag in ("00280010", "00280011"))
    groups = document["52009230"]["Value"]
    data = np.frombuffer(base64.b64decode(document["7FE00010"]["InlineBinary"]), np.uint8)
    bits = np.unpackbits(data, bitorder="little")[: len(groups) * rows * columns]
    frames = {}
    for item, mask in zip(groups, bits.reshape(len(groups), rows, columns), strict=True):
        (derivation,) = item["00089124"]["Value"]
        (image,) = derivation["00082112"]["Value"]
        number = item["0062000A"]["Value"][0]["0062000B"]["Value"][0]
        position = item["00209113"]["Value"][0]["00200032"]["Value"]
        frames[image["00081155"]["Value"][0], number] = (position, mask)
    return frames


@pytest.mark.parametrize("step_mm", [2.5, -2.5], ids=["feet to head", "head to feet"])
@pytest.mark.parametrize(
    ("orientation", "columns"), [*((name, 24) for name in ORIENTATIONS), ("oblique", 23)]
)
def test_every_mask_lies_on_the_slice_it_was_computed_from(
    orientation: str, columns: int, step_mm: float, tmp_path: Path
) -> None:
    """DCMTK finds each mask at its slice's position and reference, whatever the orientation."""
    headers = series(ORIENTATIONS[orientation], step_mm=step_mm, columns=columns)
    order = np.random.default_rng(7).permutation(len(headers))
    headers = [headers[index] for index in order]
    labels = labels_for(headers)
    path = tmp_path / "seg.dcm"
    path.write_bytes(part10(encode_seg(labels, headers, SEGMENTS, ALGORITHM, IDENTITY)))

    frames = frames_by_dcmtk(path)
    expected = {
        (header.SOPInstanceUID, number)
        for header, plane in zip(headers, labels, strict=True)
        for number in (1, 2)
        if (plane == number).any()
    }
    assert set(frames) == expected
    for header, plane in zip(headers, labels, strict=True):
        for number in (1, 2):
            if (header.SOPInstanceUID, number) in frames:
                position, mask = frames[header.SOPInstanceUID, number]
                assert position == pytest.approx(list(header.ImagePositionPatient), abs=1e-4)
                assert np.array_equal(mask, plane == number)


def test_highdicom_reads_back_the_label_map() -> None:
    """The masks found by source instance equal the label map, empty slices included."""
    headers = series()
    labels = labels_for(headers)
    written = part10(encode_seg(labels, headers, SEGMENTS, ALGORITHM, IDENTITY))
    read = hd.seg.Segmentation.from_dataset(dcmread(BytesIO(written)))
    masks = read.get_pixels_by_source_instance(
        source_sop_instance_uids=[header.SOPInstanceUID for header in headers],
        combine_segments=True,
        assert_missing_frames_are_empty=True,
    )
    assert np.array_equal(masks, labels)


def test_spacing_is_measured_and_jitter_is_levelled() -> None:
    """A wrong SpacingBetweenSlices and a last digit of difference in orientation do no harm."""
    headers = series()
    for header in headers:
        header.SpacingBetweenSlices = 0
    headers[2].ImageOrientationPatient = [1, 0, 0.00001, 0, 1, 0]
    result = encode_seg(labels_for(headers), headers, SEGMENTS, ALGORITHM, IDENTITY)
    measures = result.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert measures.SpacingBetweenSlices == 2.5
    assert measures.SliceThickness == 3


@pytest.mark.parametrize("shape", [(6, 16, 12), (5, 16, 24)])
def test_another_grid_than_the_source_is_refused(shape: tuple[int, int, int]) -> None:
    """Viewers do not show a mask on another grid, so it is never written."""
    with pytest.raises(ModelFault, match="label map"):
        encode_seg(np.ones(shape, np.uint8), series(), SEGMENTS, ALGORITHM, IDENTITY)


def test_two_slices_at_one_position_are_refused() -> None:
    """Without distinct positions a mask could belong to either slice."""
    headers = series()
    headers[4].ImagePositionPatient = headers[1].ImagePositionPatient
    with pytest.raises(GeometryError, match="2 and 5"):
        encode_seg(labels_for(headers), headers, SEGMENTS, ALGORITHM, IDENTITY)


def test_slice_of_another_orientation_is_refused() -> None:
    """A localizer among the slices is named by its place."""
    headers = series()
    headers[3].ImageOrientationPatient = list(ORIENTATIONS["coronal"])
    with pytest.raises(GeometryError, match="1 and 4 differ in ImageOrientationPatient"):
        encode_seg(labels_for(headers), headers, SEGMENTS, ALGORITHM, IDENTITY)


def _swap_positions(seg: Dataset) -> None:
    first, last = (seg.PerFrameFunctionalGroupsSequence[index] for index in (0, -1))
    first.PlanePositionSequence, last.PlanePositionSequence = (
        last.PlanePositionSequence,
        first.PlanePositionSequence,
    )


def _drop_derivation(seg: Dataset) -> None:
    del seg.PerFrameFunctionalGroupsSequence[1].DerivationImageSequence


def _swap_segments(seg: Dataset) -> None:
    for item in seg.PerFrameFunctionalGroupsSequence:
        identification = item.SegmentIdentificationSequence[0]
        identification.ReferencedSegmentNumber = 3 - identification.ReferencedSegmentNumber


def _flip_a_bit(seg: Dataset) -> None:
    data = bytearray(seg.PixelData)
    data[40] ^= 4
    seg.PixelData = bytes(data)


def _refer_elsewhere(seg: Dataset) -> None:
    item = seg.PerFrameFunctionalGroupsSequence[0]
    item.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID = "2.25.9"


def _lose_the_last_frame(seg: Dataset) -> None:
    seg.PerFrameFunctionalGroupsSequence = seg.PerFrameFunctionalGroupsSequence[:-1]


@pytest.mark.parametrize(
    "spoil",
    [
        swap_references,
        _swap_positions,
        _drop_derivation,
        _swap_segments,
        _flip_a_bit,
        _refer_elsewhere,
        _lose_the_last_frame,
    ],
)
def test_misplaced_mask_is_quarantined(spoil: Any) -> None:
    """What viewers would show on the wrong slice without a word is held back."""
    headers = series()
    labels = labels_for(headers)
    result = encode_seg(labels, headers, SEGMENTS, ALGORITHM, IDENTITY)
    check_frames(part10(result), labels, headers)
    spoil(result)
    with pytest.raises(Quarantined):
        check_frames(part10(result), labels, headers)
