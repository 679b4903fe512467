"""A radiograph comes out as a display shows it: LUTs, polarity, sides, spacing."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from pydicom.dataset import Dataset

from node.errors import DamagedInstance, UnsuitableInput
from node.imaging.radiograph import (
    Turn,
    frontal_orientation,
    normalised,
    pixel_spacing_mm,
    radiograph_from,
    square_grid,
)
from tests.radiographs import radiograph

RAMP = np.linspace(0, 1, 64 * 48).reshape(64, 48)


def shown(ds: Dataset) -> np.ndarray:
    """Presentation values, scaled to 0 to 1."""
    array = radiograph_from(ds).array
    return (array - array.min()) / (array.max() - array.min())


@pytest.mark.parametrize("bits", [10, 12, 14, 15, 16])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_what_is_bright_on_a_display_is_large(photometric: str, bits: int) -> None:
    """Either polarity, any depth: also above what a signed 16-bit value holds."""
    found = shown(radiograph(RAMP, photometric=photometric, bits=bits))
    np.testing.assert_allclose(found, RAMP, atol=2 / 2**bits)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", None])
def test_a_window_is_applied(function: str | None) -> None:
    """Below and above the window the image is flat (or, for a sigmoid, nearly so)."""
    ds = radiograph(RAMP, WindowCenter=2048, WindowWidth=1024, VOILUTFunction=function)
    found = shown(ds)
    middle = found[np.abs(RAMP - 0.5) < 0.001].mean()
    assert middle == pytest.approx(0.5, abs=0.01)
    slope_inside = np.ptp(found[np.abs(RAMP - 0.5) < 0.05])
    slope_outside = np.ptp(found[RAMP < 0.1])
    assert slope_inside > 10 * slope_outside


def test_a_voi_lut_goes_before_a_window() -> None:
    """PS3.3 C.11.2: the table of the header is what the reader saw; it may even be no window."""
    table = (np.linspace(0, 1, 4096) ** 3 * 65535).astype(np.uint16)
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [4096, 0, 16], table.tolist()
    ds = radiograph(RAMP, VOILUTSequence=[item], WindowCenter=1, WindowWidth=2)
    np.testing.assert_allclose(shown(ds), RAMP**3, atol=1e-3)


def test_a_modality_lut_and_rescaling_are_applied() -> None:
    """A falling table turns the image over, as it would on a display."""
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [4096, 0, 16], list(range(40950, -10, -10))
    np.testing.assert_allclose(
        shown(radiograph(RAMP, ModalityLUTSequence=[item])), 1 - RAMP, atol=1e-3
    )
    rescaled = radiograph(RAMP, RescaleSlope="0.5", RescaleIntercept="-7")
    np.testing.assert_allclose(shown(rescaled), RAMP, atol=1e-3)


@pytest.mark.parametrize(("center", "width"), [(-9000, 10), (2048, 1), (2048, 0), ("", "")])
def test_a_window_that_shows_nothing_is_passed_over(center: object, width: object) -> None:
    """A damaged header does not make the image black."""
    found = shown(radiograph(RAMP, WindowCenter=center, WindowWidth=width))
    np.testing.assert_allclose(found, RAMP, atol=1e-3)


def test_padding_is_black_and_does_not_count() -> None:
    """PixelPaddingValue, here the brightest, is neither shown nor part of the percentiles."""
    ds = radiograph(RAMP, PixelPaddingValue=4095, PixelPaddingRangeLimit=3000)
    image = radiograph_from(ds)
    assert image.padding is not None
    plane = normalised(image.array, image.padding, (0, 100))
    assert (plane[RAMP > 0.74] == 0).all()
    assert plane[(RAMP > 0.7) & (RAMP < 0.73)].min() > 0.95


@pytest.mark.parametrize(
    ("orientation", "toward"),
    [
        (("L", "F"), ("L", "F")),
        (("R", "F"), ("R", "F")),
        (("LF", "FR"), ("L", "F")),
        (("F", "L"), ("F", "L")),
        (("A", "F"), None),
        (("L", "R"), None),
        (("L",), None),
        (None, None),
    ],
)
def test_patient_orientation_tells_the_sides_of_a_frontal_view_only(
    orientation: tuple[str, ...] | None, toward: tuple[str, str] | None
) -> None:
    """What does not span a frontal plane is as good as none."""
    assert frontal_orientation(radiograph(RAMP, orientation=orientation)) == toward


def test_every_orientation_is_turned_as_it_is_displayed_and_back() -> None:
    """Eight ways to store one body: each is turned so that left is right and the head is up."""
    left_foot = np.array([[1, 2, 3], [4, 5, 6]])  # columns to the left, rows to the feet
    seen = 0
    for first, second in product("LRFH", "LRFH"):
        if (first in "LR") == (second in "LR"):
            continue
        stored = left_foot if first in "LR" else left_foot.T
        columns, rows = (first, second) if first in "LR" else (second, first)
        if columns == "R":
            stored = stored[:, ::-1] if first in "LR" else stored[::-1]
        if rows == "H":
            stored = stored[::-1] if first in "LR" else stored[:, ::-1]
        turn = Turn.of((first, second))
        np.testing.assert_array_equal(turn.apply(stored), left_foot)
        np.testing.assert_array_equal(turn.undo(turn.apply(stored)), stored)
        seen += 1
    assert seen == 8


@pytest.mark.parametrize(
    ("attributes", "spacing_mm"),
    [
        ({"PixelSpacing": [0.2, 0.1]}, (0.2, 0.1)),
        ({"ImagerPixelSpacing": [0.15, 0.15]}, (0.15, 0.15)),
        ({"PixelSpacing": ["0.000", "0.000"], "ImagerPixelSpacing": [0.3, 0.3]}, (0.3, 0.3)),
        ({"PixelSpacing": ["0.000", "0.000"]}, None),
        ({}, None),
    ],
)
def test_spacing_is_known_only_where_it_is_positive(
    attributes: dict[str, object], spacing_mm: tuple[float, float] | None
) -> None:
    """Of the patient first, else of the detector; zeros are no spacing."""
    assert pixel_spacing_mm(radiograph(RAMP, **attributes)) == spacing_mm


def test_the_square_holds_the_whole_image_with_its_aspect() -> None:
    """A narrow image with pixels twice as high as wide fills the height and half of the width."""
    grid = square_grid((100, 100), (2.0, 1.0), 64)
    square = grid.from_source(np.ones((100, 100)), 0.0)
    assert square[32].sum() == pytest.approx(32, abs=1)
    assert square[:, 32].sum() == pytest.approx(64, abs=1)
    np.testing.assert_allclose(square, square[::-1, ::-1], atol=1e-5)


def test_no_pixels_and_colour_are_told_in_words() -> None:
    """The errors name the attribute."""
    with pytest.raises(DamagedInstance, match="no PixelData"):
        radiograph_from(radiograph(RAMP, PixelData=None))
    with pytest.raises(DamagedInstance, match="cannot be decoded"):
        radiograph_from(radiograph(RAMP, PixelData=b"\0" * 10))
    with pytest.raises(UnsuitableInput, match="SamplesPerPixel"):
        radiograph_from(radiograph(RAMP, SamplesPerPixel=3))
