"""The picture of a result: the right side, the right colours, the right numbers."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from node.errors import EmptyResult
from node.manifest import Code, NetworkManifest, Segment
from node.results.overlay import montage_png, segment_volumes_ml
from node.sdk import Volume

SPACING_MM = (5.0, 2.0, 2.0)
LEFT, RIGHT = (0, 200, 255), (255, 140, 0)


def segment(number: int, label: str, rgb: tuple[int, int, int]) -> Segment:
    code = Code(value="1", scheme="99TEST", meaning=label)
    return Segment(number=number, label=label, category=code, type=code, rgb=rgb)


@pytest.fixture
def manifest() -> NetworkManifest:
    return NetworkManifest.model_validate(
        {
            "name": "test_model",
            "version": "1.0.0",
            "description": "Two boxes",
            "licence": "Apache-2.0",
            "training_data": "None",
            "intended_use": "Tests",
            "weights": {"sha256": "0" * 64},
            "input": {
                "modality": "CT",
                "min_slices": 2,
                "min_extent_mm": 10,
                "slice_spacing_mm": [0.5, 6],
                "pixel_spacing_mm": [0.3, 3],
                "wanted": "A phantom",
            },
            "preprocessing": {
                "window_hu": [-1000, 400],
                "in_plane_size": 64,
                "in_plane_spacing_mm": 2,
                "body_above_hu": -300,
                "context_slices": 1,
                "context_mm": 5,
            },
            "postprocessing": {
                "min_component_ml": 0,
                "min_component_share": 0,
                "min_segment_ml": 0,
            },
            "results": {"series_number": 9001, "series_description": "Test"},
            "segments": [segment(1, "Left", LEFT), segment(2, "Right", RIGHT)],
            "digest": "0" * 64,
        }
    )


def phantom() -> tuple[Volume, np.ndarray]:
    """Axes along head, back and left; segment 1 on the patient's left, 2 on the right, lower."""
    image = np.full((40, 96, 128), -700, np.int16)
    labels = np.zeros(image.shape, np.uint8)
    labels[12:36, 20:60, 76:112] = 1
    labels[4:28, 30:76, 16:56] = 2
    image[labels == 2] = -300
    affine = np.array(
        [[0, 0, 2.0, -120], [0, 2.0, 0, -90], [5.0, 0, 0, 400], [0, 0, 0, 1]], np.float64
    )
    uids = tuple(f"2.25.{index}" for index in range(40))
    return Volume(image, affine, SPACING_MM, uids), labels


def turned(volume: Volume, labels: np.ndarray, axes: tuple[int, ...]) -> tuple[Volume, np.ndarray]:
    """The same anatomy with these array axes running the other way."""
    affine = volume.affine.copy()
    for axis in axes:
        affine[:3, 3] += affine[:3, axis] * (volume.array.shape[axis] - 1)
        affine[:3, axis] *= -1
    array = np.flip(volume.array, axes)
    return Volume(array, affine, SPACING_MM, volume.sop_instance_uids), np.flip(labels, axes)


def picture(png: bytes) -> np.ndarray:
    image = Image.open(BytesIO(png))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB")).astype(int)


def near(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return np.abs(pixels - colour).max(axis=-1) < 40


def test_patient_left_is_shown_on_the_right(manifest: NetworkManifest) -> None:
    """In the first tile and in the coronal view, the left segment lies right of the right one."""
    pixels = picture(montage_png(*phantom(), manifest))
    # The third row of tiles lies below the upper segment's end; the second shows both.
    tile = pixels[300:450, 28 : 28 + 264]
    left, right = (np.argwhere(near(tile, colour))[:, 1] for colour in (LEFT, RIGHT))
    assert left.size
    assert right.size
    assert left.min() > right.max()


def test_head_is_up_in_the_coronal_view(manifest: NetworkManifest) -> None:
    """The segment that lies nearer to the head begins and ends higher in the coronal view."""
    pixels = picture(montage_png(*phantom(), manifest))
    coronal = pixels[74:, 28 + 4 * 274 + 10 :]
    coronal = coronal[: int(coronal.shape[0] * 0.75)]  # above the legend
    left, right = (np.argwhere(near(coronal, colour))[:, 0] for colour in (LEFT, RIGHT))
    assert left.min() < right.min()
    assert left.max() < right.max()


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 2), (0, 1, 2)])
def test_array_order_does_not_change_the_picture(
    manifest: NetworkManifest, axes: tuple[int, ...]
) -> None:
    """Feet first, prone or mirrored storage: the same anatomy is the same picture."""
    upright = phantom()
    assert montage_png(*turned(*upright, axes), manifest) == montage_png(*upright, manifest)


def test_sagittal_storage_gives_the_same_picture(manifest: NetworkManifest) -> None:
    """Slices stored from right to left are turned to axial."""
    volume, labels = phantom()
    order = (2, 0, 1)
    affine = volume.affine.copy()
    affine[:, :3] = volume.affine[:, list(order)]
    spacing_mm = (2.0, 5.0, 2.0)
    stored = Volume(volume.array.transpose(order), affine, spacing_mm, ())
    shown = montage_png(stored, labels.transpose(order), manifest)
    assert shown == montage_png(volume, labels, manifest)


def test_anatomy_stays_visible_under_the_fill(manifest: NetworkManifest) -> None:
    """Inside a segment at most a fifth of the colour is laid over the image."""
    volume, labels = phantom()
    flat = Volume(np.full_like(volume.array, 400), volume.affine, SPACING_MM, ())
    pixels = picture(montage_png(flat, labels, manifest))
    # On white, what the red channel loses to LEFT (red 0) is the opacity.
    tile = pixels[300:450, 28 : 28 + 264]
    filled = tile[(tile[..., 2] > 250) & (tile[..., 0] < 250) & (tile[..., 0] > 150)]
    assert len(filled) > 500
    assert np.median(filled[:, 0]) >= 255 * 0.80


def test_volumes_are_voxels_times_their_size(manifest: NetworkManifest) -> None:
    """The legend's numbers: 24 x 40 x 36 voxels of 20 cubic millimetres are 691.2 ml."""
    volume, labels = phantom()
    labels = np.where(labels == 1, labels, 0).astype(np.uint8)
    (left, left_ml), (right, right_ml) = segment_volumes_ml(
        labels, volume.voxel_ml, manifest.segments
    )
    assert (left.label, right.label) == ("Left", "Right")
    assert left_ml == pytest.approx(691.2)
    assert right_ml == 0


def test_single_labelled_slice_makes_a_picture(manifest: NetworkManifest) -> None:
    """The smallest finding is shown too."""
    volume, labels = phantom()
    labels = np.zeros_like(labels)
    labels[20, 40:44, 60:64] = 1
    assert picture(montage_png(volume, labels, manifest)).shape[0] > 100


def test_nothing_found_makes_no_picture(manifest: NetworkManifest) -> None:
    """An empty label map is a result without a picture."""
    volume, labels = phantom()
    with pytest.raises(EmptyResult):
        montage_png(volume, np.zeros_like(labels), manifest)
