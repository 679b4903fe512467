"""Stacking a series: order, affine, and every geometry that is refused."""

from __future__ import annotations

import random
from copy import deepcopy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from node.errors import DamagedInstance, GeometryError
from node.imaging.volume import series_geometry, volume_from_series
from tests.phantoms import ORIENTATIONS, chest_hu, ct_series

SMALL = {"slices": 6, "rows": 20, "columns": 28}


def shuffled(series: list[Dataset], seed: int = 1) -> list[Dataset]:
    return random.Random(seed).sample(series, len(series))


def patient_points(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    return index @ affine[:3, :3].T + affine[:3, 3]


@pytest.mark.parametrize("position", ORIENTATIONS)
def test_affine_maps_every_voxel_to_the_anatomy_that_it_shows(position: str) -> None:
    """The HU at the affine's LPS point are the HU painted there, in each patient position."""
    series = ct_series(position=position, center_mm=(12, -7, 30), **SMALL)
    volume = volume_from_series(shuffled(series))
    expected = chest_hu(patient_points(volume.affine, volume.array.shape))
    np.testing.assert_allclose(volume.array, expected, atol=60)  # the phantom's noise


@pytest.mark.parametrize("position", ORIENTATIONS)
def test_slices_ascend_along_the_normal_whatever_their_order(position: str) -> None:
    """Any order of arrival gives the same volume, with the UIDs in slice order."""
    series = ct_series(position=position, **SMALL)
    volume = volume_from_series(series)
    again = volume_from_series(shuffled(series))
    assert volume.sop_instance_uids == tuple(ds.SOPInstanceUID for ds in series)
    assert again.sop_instance_uids == volume.sop_instance_uids
    np.testing.assert_array_equal(again.array, volume.array)
    np.testing.assert_array_equal(again.affine, volume.affine)
    row, column, normal = (volume.affine[:3, axis] for axis in (2, 1, 0))
    assert np.dot(np.cross(row, column), normal) > 0


@settings(max_examples=25, deadline=None)
@given(
    slice_mm=st.floats(0.5, 8),
    row_mm=st.floats(0.3, 6),
    column_mm=st.floats(0.3, 6),
    position=st.sampled_from(sorted(ORIENTATIONS)),
)
def test_spacing_and_determinant_follow_the_headers(
    slice_mm: float, row_mm: float, column_mm: float, position: str
) -> None:
    """Spacing is (slice, row, column) and the affine's determinant is the voxel's volume."""
    spacing = (round(slice_mm, 3), round(row_mm, 3), round(column_mm, 3))
    geometry = series_geometry(
        ct_series(slices=3, rows=4, columns=5, spacing_mm=spacing, position=position)
    )
    assert geometry.spacing_mm == pytest.approx(spacing, rel=1e-3)
    assert abs(np.linalg.det(geometry.affine)) == pytest.approx(np.prod(spacing), rel=2e-3)
    assert geometry.shape == (3, 4, 5)


def test_geometry_needs_no_pixels() -> None:
    """Headers alone give order, affine and refusals: the hospital side checks before it works."""
    series = ct_series(**SMALL)
    with_pixels = series_geometry(series)
    for ds in series:
        del ds.PixelData
    np.testing.assert_array_equal(series_geometry(series).affine, with_pixels.affine)
    with pytest.raises(DamagedInstance, match="PixelData"):
        volume_from_series(series)


def test_missing_slice_is_refused_with_both_instance_numbers() -> None:
    """A gap names the instances on either side, its size and the expected one."""
    series = shuffled(ct_series(missing=[3], **SMALL))
    with pytest.raises(
        GeometryError, match=r"gap 10\.00 mm between instances 3 and 5, expected 5\.00 mm"
    ) as caught:
        series_geometry(series)
    assert "complete series" in caught.value.remedy


def test_duplicate_position_is_refused_with_both_instance_numbers() -> None:
    """Two instances at one position are two reconstructions, and neither is chosen silently."""
    with pytest.raises(GeometryError, match=r"Instances 3 and 1003 .* same position"):
        series_geometry(ct_series(duplicate=[2], **SMALL))


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_slices_are_refused(count: int) -> None:
    """One image, or none, is no volume."""
    with pytest.raises(GeometryError, match=f"{count} image instance"):
        series_geometry(ct_series(**SMALL)[:count])


def test_gantry_tilt_is_refused_in_degrees() -> None:
    """A sheared stack names its tilt; a viewer would draw the result beside the anatomy."""
    with pytest.raises(GeometryError, match=r"Gantry tilt of 12\.0 degrees"):
        series_geometry(ct_series(tilt_degrees=12, **SMALL))


def test_rounding_of_positions_is_no_gap() -> None:
    """Positions written to a tenth of a millimetre still form one evenly spaced stack."""
    series = ct_series(slices=12, rows=8, columns=8, spacing_mm=(0.625, 1, 1))
    for ds in series:
        ds.ImagePositionPatient = [f"{value:.1f}" for value in ds.ImagePositionPatient]
    assert series_geometry(series).spacing_mm[0] == pytest.approx(0.625, abs=0.02)


def test_localizer_among_the_slices_is_refused() -> None:
    """A non-parallel instance is named."""
    series = ct_series(**SMALL)
    series[4].ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    with pytest.raises(GeometryError, match=r"Instances 1 and 5"):
        series_geometry(series)


def test_one_slice_beside_the_stack_is_refused() -> None:
    """A sideways jump of one slice is not averaged away."""
    series = ct_series(**SMALL)
    x, y, z = series[2].ImagePositionPatient
    series[2].ImagePositionPatient = [x + 9, y, z]
    with pytest.raises(GeometryError, match=r"Instance 3 lies 9\.00 mm beside"):
        series_geometry(series)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [("Rows", 21), ("PixelSpacing", [1.0, 1.0]), ("FrameOfReferenceUID", "1.2.3")],
)
def test_mixed_reconstructions_are_refused(keyword: str, value: object) -> None:
    """Instances that differ in size, spacing or frame of reference are not one volume."""
    series = ct_series(**SMALL)
    setattr(series[-1], keyword, value)
    with pytest.raises(GeometryError, match=rf"{keyword} differs between instances 1 and 6"):
        series_geometry(series)


@pytest.mark.parametrize(
    "keyword", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows"]
)
def test_missing_geometry_is_named(keyword: str) -> None:
    """A screenshot stored as CT has no place in the patient, and the message says which tag."""
    with pytest.raises(GeometryError, match=f"has no {keyword}"):
        series_geometry(ct_series(**{**SMALL, keyword: None}))


def test_multi_frame_is_refused() -> None:
    """An enhanced CT is told from a single-frame one."""
    with pytest.raises(GeometryError, match="multi-frame"):
        series_geometry(ct_series(NumberOfFrames=2, **SMALL))


def test_skewed_direction_cosines_are_refused() -> None:
    """ImageOrientationPatient must be two orthogonal unit vectors (PS3.3 C.7.6.2.1.1)."""
    with pytest.raises(GeometryError, match="orthogonal unit"):
        series_geometry(ct_series(ImageOrientationPatient=[1, 0, 0, 0.5, 0.8, 0], **SMALL))


def test_no_refusal_repeats_what_stands_in_instance_number() -> None:
    """`route` reads headers as they came: an order number there reaches no message."""
    series = ct_series(**SMALL)
    for number, ds in enumerate(series):
        ds.InstanceNumber = str(90000000 + number)
    gap = series[:2] + series[3:]
    odd = [deepcopy(ds) for ds in shuffled(series)]
    odd[1].PixelSpacing = [9, 9]
    damaged = [*series[:3], Dataset(), *series[3:]]
    for broken, places in ((gap, "2 and at place 3"), (odd, "1 and at place 2"), (damaged, "4")):
        with pytest.raises(GeometryError, match=f"at place {places}") as refused:
            series_geometry(broken)
        assert "900000" not in str(refused.value)
