"""Secondary Captures and contours: where they lie and what they show."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import numpy as np
from matplotlib.path import Path as MatplotlibPath
from pydicom.dataset import Dataset

from node.kinds import ResultKind
from node.results.capture import FILL_OPACITY
from node.results.objects import Found
from node.results.rtstruct import contours_of
from tests.result_case import WINDOW, Case, with_labels


def test_captures_lie_where_their_sources_lie(
    case: Case, encoded: Callable[[str], list[Dataset]]
) -> None:
    """Each slice with a segment has one picture, at its place and with its number, that names it
    as its source."""
    shown = [case.sources[i] for i in np.flatnonzero(case.labels.any(axis=(1, 2)))]
    for picture, source in zip(encoded("capture"), shown, strict=True):
        for keyword in (
            "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing",
            "FrameOfReferenceUID", "Rows", "Columns", "InstanceNumber",
        ):  # fmt: skip
            assert picture[keyword].value == source[keyword].value, keyword
        (item,) = picture.SourceImageSequence
        assert item.ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert picture.BurnedInAnnotation == "YES"


def test_pictures_of_sources_with_the_same_number_are_counted(case: Case) -> None:
    """A series whose images all say 1 still has pictures in order."""
    sources = deepcopy(case.sources)
    for source in sources:
        source.InstanceNumber = 1
    pictures = replace(case.found, sources=sources).encoded(ResultKind.CAPTURE)
    shown = np.flatnonzero(case.labels.any(axis=(1, 2))) + 1
    assert [picture.InstanceNumber for picture in pictures] == shown.tolist()


def test_anatomy_stays_visible_under_the_colour(
    case: Case, encoded: Callable[[str], list[Dataset]]
) -> None:
    """Inside a segment at most a fifth of a pixel is colour; outside nothing is."""
    index = len(case.labels) // 2
    (picture,) = [
        one for one in encoded("capture")
        if one.ImagePositionPatient == case.sources[index].ImagePositionPatient
    ]  # fmt: skip
    pixels = picture.pixel_array.astype(float)
    low, high = WINDOW
    grey = np.round(255 * np.clip((case.volume.array[index] - low) / (high - low), 0, 1))
    labels = case.labels[index]
    middle = slice(len(labels) * 2 // 5, len(labels) * 19 // 40)  # no text there
    outside = labels[middle] == 0
    assert np.array_equal(pixels[middle][outside], np.repeat(grey[middle][outside, None], 3, 1))
    for segment in case.segments:
        inner = np.zeros(labels.shape, bool)
        inner[middle] = _eroded(labels == segment.number)[middle]
        assert inner.any()
        expected = (1 - FILL_OPACITY) * grey[inner, None] + FILL_OPACITY * np.array(segment.rgb)
        assert np.abs(pixels[inner] - expected).max() <= 1


def test_forty_segments_leave_the_notice_readable(many: Found) -> None:
    """No label is drawn over the lines at the bottom."""
    picture = next(many.encoded(ResultKind.CAPTURE)).pixel_array
    bottom = picture[-3 * 11 - 4 :]
    assert not (bottom == (255, 0, 255)).all(axis=-1).any()


def test_a_picture_names_only_what_it_shows(case: Case) -> None:
    """The colour of a segment that lies elsewhere is nowhere on the picture."""
    labels = case.labels.copy()
    labels[labels == 2] = 0
    labels[-1][5:9, 5:9] = 2
    found = with_labels(case, labels, case.segments)
    first = next(found.encoded(ResultKind.CAPTURE)).pixel_array
    left, right = ((first == segment.rgb).all(axis=-1).any() for segment in case.segments)
    assert (left, right) == (True, False)


def test_contours_enclose_the_label_map(
    case: Case, encoded: Callable[[str], list[Dataset]]
) -> None:
    """Filled again by another library, the contours give the masks."""
    rows, columns = np.indices(case.labels.shape[1:])
    centres = np.c_[columns.ravel(), rows.ravel()]
    positions = {one.SOPInstanceUID: index for index, one in enumerate(case.sources)}
    to_index = np.linalg.inv(case.volume.affine)
    for roi in encoded("rtstruct")[0].ROIContourSequence:
        filled = np.zeros(case.labels.shape, bool)
        for contour in roi.ContourSequence:
            (reference,) = contour.ContourImageSequence
            index = positions[reference.ReferencedSOPInstanceUID]
            points_mm = np.reshape(np.asarray(contour.ContourData, float), (-1, 3))
            points = (np.c_[points_mm, np.ones(len(points_mm))] @ to_index.T)[:, :3]
            assert np.allclose(points[:, 0], index, atol=1e-3)
            outline = MatplotlibPath(points[:, [2, 1]])
            filled[index] |= outline.contains_points(centres).reshape(rows.shape)
        assert np.array_equal(filled, case.labels == roi.ReferencedROINumber)


def test_a_hole_is_not_filled_by_a_reader_that_knows_no_holes() -> None:
    """A ring with an island in it and a second hole: every contour filled, the union is the mask.

    PS3.3 C.8.8.6.3 lets no CLOSED_PLANAR contour cut another out: holes are keyholes.
    """
    mask = np.zeros((40, 50), bool)
    mask[5:30, 5:30] = True
    mask[8:20, 8:20] = mask[22:28, 9:26] = mask[21:27, 21:23] = False
    mask[11:16, 11:16] = True  # the island
    mask[33:38, 2:48] = True
    mask[::7, 33:48] = True
    rows, columns = np.indices(mask.shape)
    centres = np.c_[rows.ravel(), columns.ravel()]
    filled = np.zeros(mask.shape, bool)
    contours = list(contours_of(mask))
    for outline in contours:
        inside = MatplotlibPath(outline).contains_points(centres).reshape(mask.shape)
        assert not (filled & inside).any()
        filled |= inside
    assert np.array_equal(filled, mask)


def _eroded(mask: np.ndarray) -> np.ndarray:
    padded = np.pad(mask, 1)
    return padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:] & mask
