"""Labels beside a series, as hospitals keep them, come out on the grid of the series."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydicom import dcmwrite
from pydicom.dataset import Dataset

from node.errors import UnsuitableInput
from node.imaging.volume import series_geometry
from node.manifest import Segment, read_manifest
from node.results.seg import Algorithm, encode_seg
from node.results.uids import ResultIdentity
from node.training.examples import scanner_of, volume_examples
from node.training.labels import label_files
from node.training.series import Series, read_series
from tests.phantoms import ORIENTATIONS, chest_truth, ct_series

SEGMENTS = read_manifest(Path(__file__).parents[2] / "models" / "ct_lungs").segments
SHAPE = {"slices": 16, "rows": 60, "columns": 70, "spacing_mm": (9.0, 5.0, 5.0)}


def put_series(folder: Path, position: str = "HFS") -> list[Dataset]:
    """A phantom's chest in files, in no order."""
    folder.mkdir(parents=True)
    series = ct_series(position=position, PatientID="ONE", **SHAPE)
    for number, ds in enumerate(reversed(series)):
        dcmwrite(folder / f"{number:03}.dcm", ds, enforce_file_format=True)
    return series


def only(data: Path) -> Series:
    (series,) = read_series(data)
    return series


@pytest.mark.parametrize("position", ["HFS", "FFP", "HFDL"])
def test_a_segmentation_that_references_the_series(tmp_path: Path, position: str) -> None:
    """Its segments are found by code, whatever their numbers; it may lie in any folder."""
    series = put_series(tmp_path / "images", position)
    geometry = series_geometry(series)
    ordered = [series[index] for index in geometry.order]
    truth = chest_truth(ordered)
    swapped = [
        SEGMENTS[1].model_copy(update={"number": 1}),
        SEGMENTS[0].model_copy(update={"number": 2}),
    ]
    document = encode_seg(
        np.choose(truth, (0, 2, 1)).astype(np.uint8),
        ordered,
        swapped,
        Algorithm(name="somebody", version="1", digest="ab" * 32),
        ResultIdentity.for_job(
            "key",
            series_number=1,
            series_description="labels",
            created=datetime(2026, 1, 1),
            software_version="1",
        ),
    )
    (tmp_path / "labels").mkdir()
    dcmwrite(tmp_path / "labels" / "seg", document, enforce_file_format=True)
    np.testing.assert_array_equal(label_files(tmp_path).of(only(tmp_path), SEGMENTS), truth)


@pytest.mark.parametrize("position", ORIENTATIONS)
def test_nifti_is_matched_by_its_affine(tmp_path: Path, position: str) -> None:
    """Written in NIfTI's own order of axes, for every patient position."""
    series = put_series(tmp_path / "images", position)
    geometry = series_geometry(series)
    truth = chest_truth([series[index] for index in geometry.order])
    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0])
    affine = to_ras @ geometry.affine[:, [2, 1, 0, 3]]
    image = nibabel.Nifti1Image(truth.transpose(2, 1, 0), affine)
    nibabel.save(image, tmp_path / "images" / "labels.nii.gz")
    np.testing.assert_array_equal(label_files(tmp_path).of(only(tmp_path), SEGMENTS), truth)


def test_npz_is_matched_by_sop_instance_uid(tmp_path: Path) -> None:
    """In any order of slices; of another shape it is refused."""
    series = put_series(tmp_path / "images")
    truth = chest_truth(series)
    uids = np.array([str(ds.SOPInstanceUID) for ds in series])
    np.savez(tmp_path / "a.npz", labels=truth[::-1], sop=uids[::-1])
    geometry = series_geometry(series)
    np.testing.assert_array_equal(
        label_files(tmp_path).of(only(tmp_path), SEGMENTS), truth[list(geometry.order)]
    )
    np.savez(tmp_path / "a.npz", labels=truth[:, ::2], sop=uids)
    with pytest.raises(UnsuitableInput, match="Labels of shape"):
        label_files(tmp_path).of(only(tmp_path), SEGMENTS)


def test_a_series_without_labels_is_no_example(tmp_path: Path) -> None:
    """And one with labels carries patient and scanner for the tables."""
    put_series(tmp_path / "images")
    assert label_files(tmp_path).of(only(tmp_path), SEGMENTS) is None
    assert not list(volume_examples([tmp_path], SEGMENTS))
    labels = tmp_path / "labels"
    labels.mkdir()
    series = only(tmp_path)
    shape = series.volume.array.shape
    np.savez(labels / "a.npz", labels=np.ones(shape, np.uint8), sop=series.volume.sop_instance_uids)
    (example,) = volume_examples([tmp_path / "images", labels], SEGMENTS)
    assert (example.patient, example.scanner) == ("ONE", "Phantom 9 mm")
    assert example.labels.all()


def test_values_that_are_no_segment_are_background(tmp_path: Path) -> None:
    """A label file of many organs trains a model of two."""
    series = put_series(tmp_path / "images")
    values = chest_truth(series).astype(np.int16)
    values[values == 0] = 117
    np.savez(tmp_path / "a.npz", labels=values, sop=[str(ds.SOPInstanceUID) for ds in series])
    labels = label_files(tmp_path).of(only(tmp_path), SEGMENTS)
    assert labels is not None
    assert set(np.unique(labels)) == {0, 1, 2}


def test_the_scanner_is_what_the_header_says() -> None:
    """Multi-valued kernels, and headers that say nothing."""
    ds = Dataset()
    assert scanner_of(ds) == "not said"
    ds.Manufacturer, ds.ManufacturerModelName = "SIEMENS", "Biograph40"
    ds.ConvolutionKernel, ds.SliceThickness = ["Br38f", "3"], "3.0"
    assert scanner_of(ds) == "SIEMENS Biograph40 Br38f/3 3 mm"


def test_segments_of_the_model_are_left_and_right() -> None:
    """The numbers that these tests take for granted."""
    assert [(one.number, one.label) for one in SEGMENTS] == [(1, "Left lung"), (2, "Right lung")]
    assert all(isinstance(one, Segment) for one in SEGMENTS)
