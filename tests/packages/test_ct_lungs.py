"""ct_lungs: left is the patient's left, real lungs are found, what is no chest stays empty."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from scipy import ndimage

from node.errors import GeometryError, UnsuitableInput
from node.imaging.pixels import modality_values
from node.imaging.resample import patient_orientation
from node.imaging.suitability import require_suitable
from node.imaging.volume import series_geometry, volume_from_series
from node.manifest import InputContract, NetworkManifest
from node.packages import load_model
from node.sdk import LabelMap, Volume
from node.segmentation import VolumeModel
from node.training.examples import Example
from node.training.recipe import load_recipe
from tests.phantoms import LEFT_LUNG, ORIENTATIONS, RIGHT_LUNG, chest_truth, ct_series, dice

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models" / "ct_lungs"
DATA = ROOT.parent / "shared" / "data"
DEMO = ROOT / "deploy" / "demo" / "ct"
DEMO_MASK = DATA / "ct_chest_cmb_crc_01068_labels"
HEAD = DATA / "head_ct_mr_sr_adit_1005" / "ct_sr"
THINNED = 3
"""Every n-th slice of the demo, where all of them would only cost time."""


@pytest.fixture(scope="module")
def model() -> VolumeModel:
    loaded = load_model(MODEL)
    assert isinstance(loaded, VolumeModel)
    return loaded


@pytest.fixture(scope="module")
def recipe() -> Any:
    return load_recipe(MODEL)


@pytest.mark.parametrize("position", ORIENTATIONS)
def test_left_and_right_are_the_patients_in_every_position(
    model: VolumeModel, position: str
) -> None:
    """On a phantom whose sides are known, both lungs are found with their own label."""
    series = ct_series(position=position, slices=24, rows=110, columns=130, spacing_mm=(6, 3, 3))
    volume = volume_from_series(series)
    truth = chest_truth(series)
    found = model.segment(volume).array
    assert dice(found == LEFT_LUNG, truth == LEFT_LUNG) > 0.95
    assert dice(found == RIGHT_LUNG, truth == RIGHT_LUNG) > 0.95


def test_segment_numbers_carry_the_codes_of_their_side(model: VolumeModel) -> None:
    """Number 1 is left, 2 is right, in label and in SNOMED CT."""
    left, right = model.manifest.segments
    assert (left.number, left.label, left.type.value) == (LEFT_LUNG, "Left lung", "44029006")
    assert (right.number, right.label, right.type.value) == (RIGHT_LUNG, "Right lung", "3341006")


@pytest.fixture(scope="module")
def demo() -> Volume:
    """The chest CT of the demo, whose patient was never trained on."""
    return volume_from_series([dcmread(path) for path in sorted(DEMO.glob("*.dcm"))])


@pytest.fixture(scope="module")
def demo_labels(model: VolumeModel, demo: Volume) -> np.ndarray:
    return model.segment(demo).array


@pytest.fixture(scope="module")
def demo_truth(model: VolumeModel, recipe: Any) -> Example:
    """The demo with threshold labels of both lungs, made as the training's were."""
    if not DEMO_MASK.is_dir():
        pytest.skip("the threshold mask of the demo series is not on this machine")
    (example,) = recipe.examples([DEMO, DEMO_MASK], model.manifest)
    return example


def test_both_lungs_of_the_demo_patient(demo: Volume, demo_labels: np.ndarray) -> None:
    """Each lung of an adult has its size and lies on its own side of the patient."""
    # LPS: +x is the patient's left, and columns run along +x here.
    assert demo.affine[0, 2] > 0
    columns = {side: np.nonzero(demo_labels == side)[2] for side in (LEFT_LUNG, RIGHT_LUNG)}
    assert columns[LEFT_LUNG].mean() > columns[RIGHT_LUNG].mean() + 100
    volumes_ml = {side: len(where) * demo.voxel_ml for side, where in columns.items()}
    assert 3500 > volumes_ml[RIGHT_LUNG] > volumes_ml[LEFT_LUNG] > 1500


def test_demo_agrees_with_threshold_labels(demo_labels: np.ndarray, demo_truth: Example) -> None:
    """Dice 0.98 of both lungs together, 0.97 of each; none of one lung in the other."""
    truth = demo_truth.labels
    assert dice(demo_labels > 0, truth > 0) >= 0.98
    assert dice(demo_labels == LEFT_LUNG, truth == LEFT_LUNG) >= 0.97
    assert dice(demo_labels == RIGHT_LUNG, truth == RIGHT_LUNG) >= 0.97
    assert int((demo_labels * truth == LEFT_LUNG * RIGHT_LUNG).sum()) < 1e-4 * (truth > 0).sum()


def trachea_of(volume: Volume) -> np.ndarray:
    """Round air in the midline of the slices above the carina, as a tube of one region each."""
    trachea = np.zeros(volume.array.shape, bool)
    midline = np.nonzero(volume.array > -300)[2].mean()
    spacing_mm = volume.spacing_mm[2]
    for index in range(60, len(volume.array)):
        regions, _ = ndimage.label(volume.array[index] < -900)
        for number, box in enumerate(ndimage.find_objects(regions), start=1):
            mask = regions[box] == number
            beside_mm = (box[1].start + np.nonzero(mask)[1].mean() - midline) * spacing_mm
            round_mm2 = mask.sum() * spacing_mm**2 * (mask.sum() > 0.55 * mask.size)
            if 60 < round_mm2 < 600 and abs(beside_mm) < 20:
                trachea[index][box] |= mask
    return trachea


def test_the_trachea_is_outside(demo: Volume, demo_labels: np.ndarray) -> None:
    """Twenty millilitres of it, and next to none is called lung."""
    assert demo.affine[2, 0] > 0  # slices ascend towards the head
    trachea = trachea_of(demo)
    assert 15 < trachea.sum() * demo.voxel_ml < 30
    assert (demo_labels[trachea] > 0).mean() < 0.01


def turned(volume: Volume, position: str) -> list[Dataset]:
    """The same patient as a scanner writes the series for another Patient Position."""
    cosines = np.array(ORIENTATIONS[position], float)
    wanted = (np.cross(cosines[:3], cosines[3:]), cosines[3:], cosines[:3])
    orientation = patient_orientation(volume.affine)
    array = orientation.apply(volume.array)  # along patient z, y, x
    spacing = [volume.spacing_mm[axis] for axis in orientation.axes]
    axes = [2 - int(np.abs(direction).argmax()) for direction in wanted]
    backwards = tuple(index for index, direction in enumerate(wanted) if direction.sum() < 0)
    array = np.flip(array.transpose(axes), backwards)
    slices_mm, rows_mm, columns_mm = (spacing[axis] for axis in axes)
    template = dcmread(next(iter(sorted(DEMO.glob("*.dcm")))), stop_before_pixels=True)
    series = []
    for index, plane in enumerate(array):
        ds = copy.deepcopy(template)
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.SOPInstanceUID = f"2.25.{index + 1}"
        ds.PatientPosition = position
        ds.ImageOrientationPatient = list(ORIENTATIONS[position])
        ds.ImagePositionPatient = [f"{value:.6g}" for value in wanted[0] * slices_mm * index]
        ds.PixelSpacing = [rows_mm, columns_mm]
        ds.Rows, ds.Columns = plane.shape
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
        ds.RescaleSlope, ds.RescaleIntercept = 1, 0
        ds.PixelData = np.ascontiguousarray(plane).tobytes()
        series.append(ds)
    return series


@pytest.fixture(scope="module")
def thinned(demo: Volume) -> Volume:
    affine = demo.affine.copy()
    affine[:3, 0] *= THINNED
    slices_mm, rows_mm, columns_mm = demo.spacing_mm
    spacing_mm = (THINNED * slices_mm, rows_mm, columns_mm)
    return Volume(demo.array[::THINNED], affine, spacing_mm, demo.sop_instance_uids[::THINNED])


def upright(volume: Volume, labels: LabelMap) -> np.ndarray:
    """Labels along patient z, y, x."""
    return patient_orientation(volume.affine).apply(labels.array)


@pytest.mark.parametrize("position", ORIENTATIONS)
def test_the_demo_patient_has_the_same_lungs_in_every_position(
    model: VolumeModel, thinned: Volume, position: str
) -> None:
    """Supine, prone, on either side, head or feet first: every voxel keeps its side."""
    volume = volume_from_series(turned(thinned, position))
    found = upright(volume, model.segment(volume))
    expected = upright(thinned, model.segment(thinned))
    assert (expected > 0).any()
    # The square is centred on every fourth pixel: turning moves it by less than a pixel.
    assert dice(found == LEFT_LUNG, expected == LEFT_LUNG) > 0.99
    assert dice(found == RIGHT_LUNG, expected == RIGHT_LUNG) > 0.99
    assert not (found * expected == LEFT_LUNG * RIGHT_LUNG).any()


def test_half_a_chest_keeps_its_side(
    model: VolumeModel, demo_truth: Example, recipe: Any, demo: Volume
) -> None:
    """With 39 % or half of the columns cut off, what is left of a lung is called by its side."""
    tried = 0
    for change, example in recipe.stresses(demo_truth):
        if "columns cut" not in change:
            continue
        tried += 1
        found = model.segment(example.image).array
        for side in (LEFT_LUNG, RIGHT_LUNG):
            truth = example.labels == side
            if truth.sum() * demo.voxel_ml < 100:
                assert (found == side).sum() * demo.voxel_ml < 5
            else:
                assert dice(found == side, truth) > 0.88
    assert tried == 4


def test_a_body_without_air_is_empty(model: VolumeModel) -> None:
    """A phantom's abdomen, below the lungs, gets no label at all."""
    series = ct_series(
        slices=20, rows=110, columns=130, spacing_mm=(5, 3, 3), center_mm=(0, 0, -190)
    )
    assert not chest_truth(series).any()
    assert not model.segment(volume_from_series(series)).array.any()


@pytest.mark.parametrize(
    "instance",
    [
        "wg04_modalities/CT2_J2KR",  # a head
        "pydicom_data_odd/693_J2KR.dcm",  # a head in its rest
        "pydicom_data_odd/explicit_VR-UN.dcm",  # an abdomen with gas, prone
        "pydicom_data_odd/bad_sequence.dcm",  # a spine
        "ts_one_ct_15_syntaxes_cornerstone3d/CTImage.dcm",  # shoulders and trachea
        "wg04_modalities/MR1_J2KI",  # MR of a head
        "pydicom_data_odd/MR-SIEMENS-DICOM-WithOverlays.dcm",  # MR of an abdomen
        "head_ct_mr_sr_adit_1005/ct_sr/Kopf nativ  5.0  H42s/00016.dcm",  # a papaya
    ],
)
def test_what_is_no_lung_stays_empty(model: VolumeModel, instance: str) -> None:
    """Even with the contract set aside: the slice, repeated to a volume, has nothing labelled."""
    path = DATA / instance
    if not path.is_file():
        pytest.skip("the image is not on this machine")
    ds = dcmread(path)
    plane = modality_values(ds)
    rows_mm, columns_mm = (float(value) for value in ds.PixelSpacing)
    cosines = np.array(ds.ImageOrientationPatient, float)
    affine = np.eye(4)
    affine[:3, 0] = np.cross(cosines[:3], cosines[3:]) * 5
    affine[:3, 1], affine[:3, 2] = cosines[3:] * rows_mm, cosines[:3] * columns_mm
    uids = tuple(f"2.25.{index}" for index in range(12))
    volume = Volume(np.repeat(plane[None], 12, axis=0), affine, (5.0, rows_mm, columns_mm), uids)
    assert not model.segment(volume).array.any()


def test_a_chest_of_another_hospital(model: VolumeModel) -> None:
    """A slice with contrast whose field of view is a circle: two lungs, each on its side."""
    path = DATA / "wg04_modalities" / "CT1_J2KI"
    if not path.is_file():
        pytest.skip("the image is not on this machine")
    ds = dcmread(path)
    plane = modality_values(ds)
    rows_mm, columns_mm = (float(value) for value in ds.PixelSpacing)
    affine = np.diag([columns_mm, rows_mm, 5.0, 1.0])[:, [2, 1, 0, 3]]
    uids = tuple(f"2.25.{index}" for index in range(12))
    volume = Volume(np.repeat(plane[None], 12, axis=0), affine, (5.0, rows_mm, columns_mm), uids)
    found = model.segment(volume).array
    lung = (plane < -500) & (found[6] > 0)
    assert lung.sum() > 0.15 * plane.size
    middles = [np.nonzero(found[6] == side)[1].mean() for side in (RIGHT_LUNG, LEFT_LUNG)]
    assert middles[0] < 200
    assert middles[1] > 312


def contract(model: VolumeModel) -> InputContract:
    manifest: NetworkManifest = model.manifest
    return manifest.input


def test_a_head_ct_is_refused_in_words(model: VolumeModel) -> None:
    """A CT that says HEAD does not reach the network; the cause names the keyword."""
    if not HEAD.is_dir():
        pytest.skip("the head CT is not on this machine")
    headers: list[Dataset] = [
        ds
        for path in sorted(HEAD.rglob("*"))
        if path.is_file() and path.suffix != ".txt"
        for ds in [dcmread(path, force=True, stop_before_pixels=True)]
        if ds.get("Modality") == "CT" and "LOCALIZER" not in ds.ImageType
    ]
    assert len(headers) > 1
    with pytest.raises(UnsuitableInput, match=r"shows the head \(BodyPartExamined\)"):
        require_suitable(contract(model), headers, series_geometry(headers))


def test_mr_and_screenshots_are_refused_in_words(model: VolumeModel) -> None:
    """Another modality by its name; a picture stored as CT because it has no place."""
    series = ct_series(slices=12, Modality="MR")
    with pytest.raises(UnsuitableInput, match="Modality is not CT"):
        require_suitable(contract(model), series, series_geometry(series))
    pictures = ct_series(slices=12, ImagePositionPatient=None)
    with pytest.raises(GeometryError, match="no ImagePositionPatient"):
        series_geometry(pictures)
    colour = ct_series(slices=2, SamplesPerPixel=3)
    with pytest.raises(UnsuitableInput, match="it is a picture"):
        volume_from_series(colour)
