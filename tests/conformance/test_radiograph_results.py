"""What goes home of a radiograph: text, page and picture; nothing that wants a place in space."""

from __future__ import annotations

import subprocess
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from node.kinds import ResultKind
from node.manifest import RadiographManifest, read_manifest
from node.results.measurements import ProjectedMeasurements, as_json, from_json, measure_case
from node.results.objects import Found, Origin, possible_kinds
from node.sdk import LabelMap, Radiograph
from tests.radiographs import REPOSITORY, radiograph

KINDS = (ResultKind.SEG, ResultKind.TEXT_SR, ResultKind.PDF, ResultKind.CAPTURE)


@pytest.fixture(scope="module")
def found() -> Found:
    """Two bright fields on a grey ramp, one of each segment."""
    manifest = read_manifest(REPOSITORY / "models" / "cxr_lungs")
    assert isinstance(manifest, RadiographManifest)
    image = radiograph(np.linspace(0, 1, 200 * 240).reshape(200, 240), BodyPartExamined="CHEST")
    labels = np.zeros((1, 200, 240), np.uint8)
    labels[0, 20:120, 130:210] = 1
    labels[0, 20:120, 20:100] = 2
    case = Radiograph(labels[0].astype(np.float32), None, ("L", "F"), None, image.SOPInstanceUID)
    label_map = LabelMap(labels, (image.SOPInstanceUID,))
    measured = measure_case(case, label_map, manifest.segments)
    origin = Origin("a job's key", datetime(2026, 11, 3, 12, 30, 1), "0.1.0", manifest)
    return Found(origin, labels, [image], from_json(as_json(measured)))


def test_it_is_measured_in_shares_of_the_image(found: Found) -> None:
    """A projection has no millilitres; the numbers survive their JSON."""
    share = 100 * 80 / (200 * 240)
    assert list(found.measurements) == [
        ProjectedMeasurements(number, pytest.approx(share, abs=1e-6)) for number in (1, 2)
    ]


def test_kinds_that_want_a_place_in_the_patient_are_not_made(found: Found) -> None:
    """Neither TID 1500 of volumes nor a structure set."""
    assert possible_kinds(found.origin.manifest) == (*KINDS, ResultKind.LABELMAP)


@pytest.mark.parametrize("kind", KINDS)
def test_each_is_one_valid_object(kind: ResultKind, found: Found, tmp_path: Path) -> None:
    """dciodvfy finds no error; nothing says where in the patient it lies."""
    [made] = found.encoded(kind)
    file = tmp_path / "made.dcm"
    made.save_as(file, enforce_file_format=True)
    done = subprocess.run(
        ["dciodvfy", str(file)], capture_output=True, text=True, check=False, errors="replace"
    )
    said = (done.stdout + done.stderr).splitlines()
    assert [line for line in said if line.startswith("Error")] == []
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "SliceThickness"):
        assert keyword not in made


def test_the_text_says_how_much_of_the_image_it_is(found: Found) -> None:
    """In words that a projection allows."""
    [made] = found.encoded(ResultKind.TEXT_SR)
    said = [item.TextValue for item in made.ContentSequence[-1].ContentSequence]
    assert sum("16.7% of the image" in text for text in said) == 2
    assert not any("ml" in text for text in said)


def test_the_picture_has_the_radiograph_s_pixels_and_sides(found: Found) -> None:
    """Same size, sides as the source states them, colour where a segment is."""
    [made] = found.encoded(ResultKind.CAPTURE)
    source: Dataset = found.sources[0]
    assert (made.Rows, made.Columns) == (source.Rows, source.Columns)
    assert made.PatientOrientation == source.PatientOrientation
    pixels = made.pixel_array.astype(int)
    coloured = np.ptp(pixels, axis=2) > 10
    inside = found.labels[0] > 0
    middle = slice(60, 110)  # no text there
    assert coloured[middle][inside[middle]].mean() > 0.95
    assert not coloured[middle][~inside[middle]].any()
