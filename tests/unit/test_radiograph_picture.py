"""The picture of a radiograph's result: turned as displayed, contoured, sides only if known."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from node.errors import EmptyResult
from node.imaging.radiograph import as_displayed
from node.manifest import RadiographManifest, read_manifest
from node.results.drawing import HEADER
from node.results.radiograph_picture import radiograph_png
from node.sdk import Radiograph
from tests.radiographs import REPOSITORY, stored

RADIOGRAPH = Radiograph(
    np.linspace(0, 1, 120 * 80, dtype=np.float32).reshape(120, 80), None, ("L", "F"), None, "2.25.1"
)


@pytest.fixture(scope="module")
def manifest() -> RadiographManifest:
    manifest = read_manifest(REPOSITORY / "models" / "cxr_lungs")
    assert isinstance(manifest, RadiographManifest)
    return manifest


def labels() -> np.ndarray:
    """The left lung on the right-hand side, high up; the right lung below, on the other side."""
    found = np.zeros((1, 120, 80), np.uint8)
    found[0, 10:50, 50:75] = 1
    found[0, 60:110, 5:35] = 2
    return found


def png(radiograph: Radiograph, found: np.ndarray, manifest: RadiographManifest) -> bytes:
    numbered, segments = manifest.settled(found[0])
    shown = as_displayed(radiograph, numbered, manifest.preprocessing.percentiles)
    return radiograph_png(
        shown.shades,
        shown.labels,
        segments,
        manifest,
        aspect=shown.aspect,
        sides_known=shown.sides_known,
    )


def drawn(radiograph: Radiograph, found: np.ndarray, manifest: RadiographManifest) -> Image.Image:
    return Image.open(BytesIO(png(radiograph, found, manifest))).convert("RGB")


def center_of(picture: Image.Image, rgb: tuple[int, int, int], below: int) -> tuple[float, float]:
    """Mean row and column of what is drawn in nearly that colour, above the legend."""
    pixels = np.asarray(picture, int)[:below]
    where = np.argwhere(np.abs(pixels - rgb).sum(axis=2) < 60)
    assert len(where) > 50
    return float(where[:, 0].mean()), float(where[:, 1].mean())


def test_contours_lie_where_the_labels_are(manifest: RadiographManifest) -> None:
    """In the segments' colours: the left lung on the right-hand side, above the right lung."""
    picture = drawn(RADIOGRAPH, labels(), manifest)
    bottom = HEADER + 900
    left, right = (center_of(picture, one.rgb, bottom) for one in manifest.segments)
    assert left[1] > picture.width / 2 > right[1]
    assert left[0] < right[0]


@pytest.mark.parametrize("toward", [("R", "F"), ("L", "H"), ("F", "L"), ("H", "R")])
def test_however_it_is_stored_it_is_shown_the_same(
    manifest: RadiographManifest, toward: tuple[str, str]
) -> None:
    """Turned pixels, with a PatientOrientation that says so, make the same picture."""
    turned = replace(RADIOGRAPH, array=stored(RADIOGRAPH.array, toward), toward=toward)
    one = np.asarray(drawn(RADIOGRAPH, labels(), manifest), int)
    other = np.asarray(drawn(turned, stored(labels()[0], toward)[None], manifest), int)
    assert one.shape == other.shape
    assert np.abs(one - other).mean() < 0.5


def test_without_orientation_no_side_is_marked(manifest: RadiographManifest) -> None:
    """Neither letter at the edges, and one line of legend instead of two."""
    unsided = (labels() > 0).astype(np.uint8) * manifest.segment_without_sides.number
    with_sides = drawn(RADIOGRAPH, labels(), manifest)
    without = drawn(replace(RADIOGRAPH, toward=None), unsided, manifest)
    assert without.height < with_sides.height
    plain = drawn(replace(RADIOGRAPH, toward=None), labels(), manifest)
    assert np.abs(np.asarray(plain, int) - np.asarray(with_sides, int)).any()


def test_nothing_found_is_no_picture(manifest: RadiographManifest) -> None:
    """There is no result then."""
    with pytest.raises(EmptyResult):
        png(RADIOGRAPH, np.zeros((1, 120, 80), np.uint8), manifest)
