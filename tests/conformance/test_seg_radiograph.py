"""The Segmentation of a radiograph: no place in the patient, yet tied to its image."""

from __future__ import annotations

import subprocess
from datetime import datetime
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from node.errors import GeometryError, Quarantined, Rejected
from node.manifest import RadiographManifest, Segment, read_manifest
from node.results.placement import check_frames
from node.results.seg import Algorithm, encode_seg
from node.results.uids import ResultIdentity
from tests.part10 import part10
from tests.radiographs import CHEST_CR, REPOSITORY, radiograph

IDENTITY = ResultIdentity.for_job(
    "a job's key",
    series_number=9002,
    series_description="cxr_lungs",
    created=datetime(2026, 11, 3, 12, 30, 1),
    software_version="0.1.0",
)
ROWS, COLUMNS = 37, 53  # so that frames do not begin at a byte


@pytest.fixture(scope="module")
def manifest() -> RadiographManifest:
    manifest = read_manifest(REPOSITORY / "models" / "cxr_lungs")
    assert isinstance(manifest, RadiographManifest)
    return manifest


def labels_of(ds: Dataset) -> np.ndarray:
    labels = np.zeros((1, ds.Rows, ds.Columns), np.uint8)
    labels[0, 5:30, 30:48] = 1
    labels[0, 4:29, 6:22] = 2
    return labels


def encoded(
    ds: Dataset, labels: np.ndarray, segments: tuple[Segment, ...], manifest: RadiographManifest
) -> Dataset:
    return encode_seg(labels, [ds], segments, Algorithm.of(manifest), IDENTITY)


def dciodvfy(seg: Dataset, folder: Path) -> list[str]:
    seg.save_as(folder / "seg.dcm", enforce_file_format=True)
    done = subprocess.run(
        ["dciodvfy", str(folder / "seg.dcm")],
        capture_output=True, text=True, check=False, errors="replace",
    )  # fmt: skip
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]


@pytest.mark.parametrize("modality", ["CR", "DX"])
@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"PixelSpacing": [0.2, 0.25]},
        {"PixelSpacing": ["0.000", "0.000"]},
        {"ImagerPixelSpacing": [0.15, 0.15]},
        {"FrameOfReferenceUID": "2.25.77", "PositionReferenceIndicator": ""},
        {"ImagePositionPatient": [0, 0, 0], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
        {"orientation": None},
        {"photometric": "MONOCHROME1"},
    ],
    ids=lambda value: "-".join(value) or "plain",
)
def test_it_is_a_valid_object_on_the_image_s_own_grid(
    modality: str, attributes: dict[str, object], tmp_path: Path, manifest: RadiographManifest
) -> None:
    """dciodvfy finds no error; a reader gets each mask back; nothing tells a place in space."""
    ds = radiograph(np.zeros((ROWS, COLUMNS)), modality=modality, **attributes)
    labels = labels_of(ds)
    seg = encoded(ds, labels, manifest.segments, manifest)
    assert dciodvfy(seg, tmp_path) == []
    read = hd.seg.segread(tmp_path / "seg.dcm")
    masks = read.get_pixels_by_source_instance([ds.SOPInstanceUID])
    np.testing.assert_array_equal(masks[0], np.stack([labels[0] == 1, labels[0] == 2], axis=-1))
    assert [str(value) for value in seg.PatientOrientation or ()] == list(
        ds.get("PatientOrientation") or ()
    )
    assert seg.get("FrameOfReferenceUID") == ds.get("FrameOfReferenceUID")
    shared = seg.SharedFunctionalGroupsSequence[0]
    assert "PlaneOrientationSequence" not in shared
    assert all("PlanePositionSequence" not in one for one in seg.PerFrameFunctionalGroupsSequence)
    assert "PixelMeasuresSequence" not in shared


def test_without_sides_there_is_one_segment(tmp_path: Path, manifest: RadiographManifest) -> None:
    """Numbered 1, as the standard wants; nothing is called left or right."""
    ds = radiograph(np.zeros((ROWS, COLUMNS)), orientation=None)
    labels = (labels_of(ds) > 0).astype(np.uint8) * manifest.segment_without_sides.number
    numbered, segments = manifest.settled(labels)
    seg = encoded(ds, numbered, segments, manifest)
    assert [(one.SegmentNumber, one.SegmentLabel) for one in seg.SegmentSequence] == [(1, "Lungs")]
    assert dciodvfy(seg, tmp_path) == []
    masks = hd.seg.segread(tmp_path / "seg.dcm").get_pixels_by_source_instance([ds.SOPInstanceUID])
    np.testing.assert_array_equal(masks[0, ..., 0], labels[0] > 0)


@pytest.mark.skipif(not CHEST_CR.exists(), reason="the sample radiographs are not here")
def test_of_a_real_computed_radiograph_it_is_valid(
    tmp_path: Path, manifest: RadiographManifest
) -> None:
    """Lossy JPEG 2000, MONOCHROME1, PixelSpacing of zeros."""
    ds = dcmread(CHEST_CR)
    seg = encoded(ds, labels_of(ds), manifest.segments, manifest)
    assert dciodvfy(seg, tmp_path) == []
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == ds.SeriesInstanceUID


def test_a_mask_of_another_image_does_not_leave(manifest: RadiographManifest) -> None:
    """The check of placement holds for radiographs as well: bits, image, and no position."""
    ds = radiograph(np.zeros((ROWS, COLUMNS)))
    labels = labels_of(ds)
    seg = encoded(ds, labels, manifest.segments, manifest)
    written = part10(seg)
    check_frames(written, labels, [ds])
    with pytest.raises(Quarantined, match="does not hold the mask"):
        check_frames(written, labels[:, :, ::-1], [ds])
    with pytest.raises(Quarantined, match="outside its source series"):
        check_frames(written, labels, [radiograph(np.zeros((ROWS, COLUMNS)))])
    position = Dataset()
    position.ImagePositionPatient = [0, 0, 0]
    seg.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence = [position]
    with pytest.raises(Quarantined, match="lies elsewhere"):
        check_frames(part10(seg), labels, [ds])


def test_two_radiographs_are_no_volume(manifest: RadiographManifest) -> None:
    """And one that lacks its identity is refused by name."""
    pair = [radiograph(np.zeros((ROWS, COLUMNS))) for _ in range(2)]
    labels = np.concatenate([labels_of(ds) for ds in pair])
    with pytest.raises(GeometryError, match="one image"):
        encode_seg(labels, pair, manifest.segments, Algorithm.of(manifest), IDENTITY)
    nameless = radiograph(np.zeros((ROWS, COLUMNS)), StudyInstanceUID=None)
    with pytest.raises(Rejected, match="StudyInstanceUID"):
        encoded(nameless, labels_of(nameless), manifest.segments, manifest)
