"""What a program wrote is taken where it lies in the patient, or refused: never guessed."""

from __future__ import annotations

import gzip
import itertools
from collections.abc import Callable
from pathlib import Path

import highdicom as hd
import nibabel
import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.sr.codedict import codes

from node.errors import ProgramFailed
from node.foreign import nifti, seg
from node.foreign.labels import as_segments
from node.imaging.volume import volume_from_series
from node.sdk import Volume
from tests.phantoms import chest_truth, ct_series

SHAPE = {"slices": 10, "rows": 24, "columns": 30, "spacing_mm": (6.0, 9.0, 8.0)}
WANTED = {1: 1, 2: 2}


@pytest.fixture(params=["HFS", "FFP", "HFDR"])
def series(request: pytest.FixtureRequest) -> list[Dataset]:
    return ct_series(**SHAPE, position=request.param)


@pytest.fixture
def volume(series: list[Dataset]) -> Volume:
    return volume_from_series(series)


@pytest.fixture
def truth(series: list[Dataset]) -> np.ndarray:
    labels = chest_truth(series)
    assert set(np.unique(labels)) == {0, 1, 2}
    return labels


def nifti_of(volume: Volume, labels: np.ndarray) -> nibabel.Nifti1Image:
    """Labels on the grid of the volume, in the order of axes that everybody uses."""
    affine = nifti.LPS_TO_RAS @ volume.affine[:, [2, 1, 0, 3]]
    return nibabel.Nifti1Image(labels.transpose(2, 1, 0), affine)


def read_nifti(tmp_path: Path, image: nibabel.Nifti1Image, volume: Volume,
               *, may_resample: bool = False) -> np.ndarray:  # fmt: skip
    nibabel.save(image, tmp_path / "labels.nii.gz")
    return nifti.read_labels(tmp_path / "labels.nii.gz", volume, may_resample=may_resample)


def test_a_volume_is_written_where_it_lies(tmp_path: Path, volume: Volume) -> None:
    """Every voxel of the NIfTI file has the patient position that DICOM gives it, and its value."""
    nifti.write_volume(volume, tmp_path / "series.nii.gz")
    image = nibabel.load(tmp_path / "series.nii.gz")
    assert image.header["sform_code"] == image.header["qform_code"] == 1
    assert image.header.get_xyzt_units()[0] == "mm"
    for index in [(0, 0, 0), (9, 0, 29), (3, 17, 5), (9, 23, 29)]:
        position = volume.affine @ [*index, 1]
        found = image.affine @ [*index[::-1], 1]
        np.testing.assert_allclose(found, position * [-1, -1, 1, 1], atol=1e-3)
        np.testing.assert_allclose(image.get_qform() @ [*index[::-1], 1], found, atol=1e-2)
        assert image.dataobj[index[::-1]] == volume.array[index]


def test_labels_in_any_order_of_axes_come_to_the_same_place(
    tmp_path: Path, volume: Volume, truth: np.ndarray
) -> None:
    """All 48 ways to store one array: permuted, flipped, in either system of the world."""
    image = nifti_of(volume, truth)
    tried = 0
    for axes, flips in itertools.product(
        itertools.permutations(range(3)), itertools.product([1, -1], repeat=3)
    ):
        turned = image.as_reoriented(np.array(list(zip(axes, flips, strict=True))))
        np.testing.assert_array_equal(read_nifti(tmp_path, turned, volume), truth)
        tried += 1
    assert tried == 48


def _shifted(image: nibabel.Nifti1Image, voxels: float) -> nibabel.Nifti1Image:
    affine = image.affine.copy()
    affine[:3, 3] += voxels * affine[:3, 2]
    return nibabel.Nifti1Image(image.dataobj, affine)


def _placeless(image: nibabel.Nifti1Image) -> nibabel.Nifti1Image:
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    return image


def _flat(image: nibabel.Nifti1Image) -> nibabel.Nifti1Image:
    flat = nibabel.Nifti1Image(image.dataobj, None)
    flat.set_sform(np.diag([1.0, 1, 0, 1]), 1)
    return flat


REFUSED_NIFTI: dict[str, tuple[Callable[[nibabel.Nifti1Image], nibabel.Nifti1Image], str]] = {
    "cropped": (lambda image: image.slicer[1:], "another grid"),
    "one slice off": (lambda image: _shifted(image, 1.0), "another grid"),
    "half a slice off": (lambda image: _shifted(image, 0.5), "another grid"),
    "coarser": (lambda image: image.slicer[::2, ::2, ::2], "another grid"),
    "without place": (_placeless, "do not say where they lie"),
    "affine lost": (lambda image: nibabel.Nifti1Image(image.dataobj, np.eye(4)), "another grid"),
    "four axes": (
        lambda image: nibabel.Nifti1Image(np.stack([image.dataobj] * 2, -1), image.affine),
        "have 4 axes",
    ),
    "flat affine": (_flat, "to a plane"),
}  # fmt: skip


@pytest.mark.parametrize("spoil", REFUSED_NIFTI)
def test_labels_on_another_grid_are_refused(
    tmp_path: Path, volume: Volume, truth: np.ndarray, spoil: str
) -> None:
    """A wrong shape, place or affine is told, and nothing is shown on the wrong slice."""
    change, message = REFUSED_NIFTI[spoil]
    with pytest.raises(ProgramFailed, match=message):
        read_nifti(tmp_path, change(nifti_of(volume, truth)), volume)


def test_a_rounding_error_of_the_affine_is_no_other_grid(
    tmp_path: Path, volume: Volume, truth: np.ndarray
) -> None:
    """Programs that write positions to a tenth of a millimetre are not refused for it."""
    image = _shifted(nifti_of(volume, truth), 0.01)
    np.testing.assert_array_equal(read_nifti(tmp_path, image, volume), truth)


def test_where_the_manifest_allows_it_the_nearest_label_is_taken(
    tmp_path: Path, volume: Volume, truth: np.ndarray
) -> None:
    """A crop keeps every label; a finer grid gives the same labels on the series' own."""
    image = nifti_of(volume, truth)
    first, *_, last = np.flatnonzero(truth.any(axis=(0, 1)))
    cropped = image.slicer[first : last + 1]
    np.testing.assert_array_equal(read_nifti(tmp_path, cropped, volume, may_resample=True), truth)
    fine = np.kron(truth.transpose(2, 1, 0), np.ones((3, 3, 3), np.uint8))
    affine = image.affine @ np.diag([1 / 3, 1 / 3, 1 / 3, 1])
    affine[:3, 3] = image.affine[:3, 3] - affine[:3, :3] @ [1, 1, 1]
    found = read_nifti(tmp_path, nibabel.Nifti1Image(fine, affine), volume, may_resample=True)
    np.testing.assert_array_equal(found, truth)


def test_labels_beside_the_series_are_not_resampled(
    tmp_path: Path, volume: Volume, truth: np.ndarray
) -> None:
    """A program that lost the affine would give an empty or shifted result: it is refused."""
    lost = nibabel.Nifti1Image(truth.transpose(2, 1, 0), np.diag([8.0, 9, 6, 1]))
    with pytest.raises(ProgramFailed, match="outside the series"):
        read_nifti(tmp_path, lost, volume, may_resample=True)


@pytest.mark.parametrize(
    "content",
    [b"", b"no image", gzip.compress(b"no image"), gzip.compress(bytes(400)), b"\x1f\x8b\x08"],
    # gzip writes the time: two workers of pytest would not agree on what a test is called.
    ids=["nothing", "text", "packed text", "packed zeros", "cut"],
)
def test_garbage_is_no_nifti(tmp_path: Path, volume: Volume, content: bytes) -> None:
    """Whatever a program wrote, the job stops with a cause and not with a defect of ours."""
    path = tmp_path / "labels.nii.gz"
    path.write_bytes(content)
    with pytest.raises(ProgramFailed, match="cannot be read as NIfTI"):
        nifti.read_labels(path, volume, may_resample=False)


def test_a_truncated_file_is_refused(tmp_path: Path, volume: Volume, truth: np.ndarray) -> None:
    """A disk that was full in the middle of writing makes no partial result."""
    path = tmp_path / "labels.nii.gz"
    noise = np.random.default_rng(1).integers(0, 3, truth.shape[::-1]).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(noise, nifti_of(volume, truth).affine), path)
    for share in (0.3, 0.9):
        content = path.read_bytes()
        short = tmp_path / "short.nii.gz"
        short.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(ProgramFailed, match="cannot be read as NIfTI"):
            nifti.read_labels(short, volume, may_resample=False)


# -- DICOM Segmentation ------------------------------------------------------------------------


def seg_of(series: list[Dataset], labels: np.ndarray, **options: object) -> Dataset:
    def described(number: int) -> hd.seg.SegmentDescription:
        return hd.seg.SegmentDescription(
            number, f"lung {number}", codes.SCT.Organ, codes.SCT.Lung, "MANUAL"
        )

    arguments: dict[str, object] = {
        "source_images": series,
        "pixel_array": labels,
        "segmentation_type": "BINARY",
        "segment_descriptions": [described(1), described(2)],
        "series_instance_uid": hd.UID(),
        "series_number": 1,
        "sop_instance_uid": hd.UID(),
        "instance_number": 1,
        "manufacturer": "nobody",
        "manufacturer_model_name": "none",
        "software_versions": "1",
        "device_serial_number": "1",
    }
    return hd.seg.Segmentation(**{**arguments, **options})


def read_seg(tmp_path: Path, ds: Dataset, volume: Volume) -> np.ndarray:
    path = tmp_path / "labels.dcm"
    ds.save_as(path, enforce_file_format=True)
    return seg.read_labels(path, volume, WANTED)


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_frames_come_to_their_slices(
    tmp_path: Path, series: list[Dataset], volume: Volume, truth: np.ndarray, kind: str
) -> None:
    """Frames in reverse order, empty ones left out, pixels packed or not."""
    ds = seg_of(series[::-1], truth[::-1], segmentation_type=kind, omit_empty_frames=True)
    np.testing.assert_array_equal(read_seg(tmp_path, ds, volume), truth)


def test_frames_with_mirrored_rows_come_to_their_slices(
    tmp_path: Path, series: list[Dataset], volume: Volume, truth: np.ndarray
) -> None:
    """Writers that went through another orientation keep the position, and so do we."""
    ds = dcmread(_saved(tmp_path, seg_of(series, truth, omit_empty_frames=False)))
    pixels = ds.pixel_array[:, :, ::-1]
    ds.PixelData = np.packbits(pixels.ravel(), bitorder="little").tobytes()
    plane = ds.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
    cosines = np.array(plane.ImageOrientationPatient, float)
    plane.ImageOrientationPatient = [*(-cosines[:3]), *cosines[3:]]
    for groups in ds.PerFrameFunctionalGroupsSequence:
        position = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        moved = position + cosines[:3] * (SHAPE["columns"] - 1) * SHAPE["spacing_mm"][2]
        groups.PlanePositionSequence[0].ImagePositionPatient = [f"{x:.6g}" for x in moved]
    np.testing.assert_array_equal(read_seg(tmp_path, ds, volume), truth)


def _move_a_frame(ds: Dataset) -> None:
    plane = ds.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence[0]
    normal = np.cross(*np.reshape(_cosines(ds), (2, 3)))
    plane.ImagePositionPatient = list(np.array(plane.ImagePositionPatient, float) + 3.0 * normal)


def _move_all_frames(ds: Dataset) -> None:
    for groups in ds.PerFrameFunctionalGroupsSequence:
        plane = groups.PlanePositionSequence[0]
        plane.ImagePositionPatient = [x + 500 for x in plane.ImagePositionPatient]


def _swap_sources(ds: Dataset) -> None:
    first, other = (
        ds.PerFrameFunctionalGroupsSequence[i].DerivationImageSequence[0].SourceImageSequence[0]
        for i in (0, 3)
    )
    first.ReferencedSOPInstanceUID, other.ReferencedSOPInstanceUID = (
        other.ReferencedSOPInstanceUID,
        first.ReferencedSOPInstanceUID,
    )


def _cosines(ds: Dataset) -> list[float]:
    plane = ds.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
    return [float(value) for value in plane.ImageOrientationPatient]


def _wider_pixels(ds: Dataset) -> None:
    ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [9.0, 8.5]


REFUSED_SEG: dict[str, tuple[Callable[[Dataset], None], str]] = {
    "between slices": (_move_a_frame, "Frame 3 .*does not lie on a slice"),
    "far away": (_move_all_frames, "lies outside the series|does not lie on a slice"),
    "other source": (_swap_sources, "Frame 1 .*names another source"),
    "other pixels": (_wider_pixels, "does not lie on a slice"),
    "probabilities": (
        lambda ds: setattr(ds, "SegmentationType", "FRACTIONAL"), "no BINARY or LABELMAP",
    ),
    "another class": (
        lambda ds: setattr(ds, "SOPClassUID", "1.2.840.10008.5.1.4.1.1.2"), "no BINARY or LABELMAP",
    ),
    "short pixels": (lambda ds: setattr(ds, "PixelData", ds.PixelData[:100]), "cannot be read"),
    "no position": (
        lambda ds: delattr(ds.PerFrameFunctionalGroupsSequence[0], "PlanePositionSequence"),
        "cannot be read",
    ),
    "a frame too few": (
        lambda ds: ds.PerFrameFunctionalGroupsSequence.pop(), "does not describe every frame",
    ),
}  # fmt: skip


@pytest.mark.parametrize("spoil", REFUSED_SEG)
def test_a_segmentation_that_lies_elsewhere_is_refused(
    tmp_path: Path, series: list[Dataset], volume: Volume, truth: np.ndarray, spoil: str
) -> None:
    """Position and SOP Instance UID must both say the same slice."""
    change, message = REFUSED_SEG[spoil]
    ds = dcmread(_saved(tmp_path, seg_of(series, truth)))
    change(ds)
    with pytest.raises(ProgramFailed, match=message):
        read_seg(tmp_path, ds, volume)


def test_garbage_is_no_segmentation(tmp_path: Path, volume: Volume) -> None:
    """Neither is an empty file, nor one that is not there."""
    path = tmp_path / "labels.dcm"
    for content in (b"", b"no DICOM", bytes(200)):
        path.write_bytes(content)
        with pytest.raises(ProgramFailed, match="cannot be read as DICOM Segmentation"):
            seg.read_labels(path, volume, WANTED)


def test_two_wanted_segments_in_one_voxel_are_refused(
    tmp_path: Path, series: list[Dataset], volume: Volume, truth: np.ndarray
) -> None:
    """A label map cannot hold both; which one is wanted is for the manifest to say."""
    both = np.stack([truth == 1, truth >= 1], axis=-1).astype(np.uint8)
    path = _saved(tmp_path, seg_of(series, both))
    with pytest.raises(ProgramFailed, match="share a voxel"):
        seg.read_labels(path, volume, {1: 1, 2: 2})
    np.testing.assert_array_equal(seg.read_labels(path, volume, {1: 1}) == 1, truth == 1)
    np.testing.assert_array_equal(seg.read_labels(path, volume, {2: 1}) == 2, truth >= 1)


def _saved(tmp_path: Path, ds: Dataset) -> Path:
    ds.save_as(tmp_path / "made.dcm", enforce_file_format=True)
    return tmp_path / "made.dcm"


# -- values ------------------------------------------------------------------------------------


def test_several_values_may_mean_one_segment() -> None:
    """Five lobes are two lungs; a float that is whole is a label."""
    values = np.array([[[0, 10, 11, 12]]])
    meaning = {10: 1, 11: 1, 12: 2}
    for dtype in (np.uint8, np.int64, np.float32, np.float64):
        found = as_segments(values.astype(dtype), meaning, ignore_others=False)
        assert (found.dtype, found.tolist()) == (np.uint8, [[[0, 1, 1, 2]]])


def test_zero_is_background_unless_it_is_named() -> None:
    """Some programs count from zero."""
    values = np.array([[[0, 1]]])
    assert as_segments(values, {0: 1, 1: 2}, ignore_others=False).tolist() == [[[1, 2]]]


def test_a_value_that_nobody_named_is_refused_or_ignored_as_the_manifest_says() -> None:
    """A new version of a program with more labels is noticed."""
    values = np.array([[[0, 1, 7, 9]]])
    with pytest.raises(ProgramFailed, match=r"does not name: 7, 9$"):
        as_segments(values, {1: 1}, ignore_others=False)
    assert as_segments(values, {1: 1}, ignore_others=True).tolist() == [[[0, 1, 0, 0]]]


@pytest.mark.parametrize(
    "value", [0.5, -1, np.nan, np.inf, 65536, 1e300], ids=lambda value: str(value)
)
def test_what_is_no_label_is_refused(value: float) -> None:
    """Probabilities, HU and broken numbers are not rounded to labels."""
    with pytest.raises(ProgramFailed, match=r"fractions|no whole numbers"):
        as_segments(np.array([[[0.0, 1.0, value]]]), {1: 1}, ignore_others=True)
