"""A chest radiograph that a PACS pushes comes home as a SEG of its patient; others are refused."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from tests.orthanc_server import OrthancServer
from tests.phantoms import dice
from tests.radiographs import CHEST_CR, LEG_CR, radiograph
from tests.running_node import RunningNode, Study, segmentations

pytestmark = pytest.mark.skipif(not CHEST_CR.exists(), reason="the sample radiographs are not here")

RULE = """
[[rules]]
name = "chest-radiograph"
model = "cxr_lungs"
destinations = ["hospital"]
when = [ { tag = "Modality", one_of = ["CR", "DX"] } ]
"""
PATIENT = {
    "PatientName": "Müller^Jürgen",
    "SpecificCharacterSet": "ISO_IR 100",
    "PatientID": "MRN-88.1207",
    "PatientBirthDate": "19480514",
    "PatientSex": "M",
    "AccessionNumber": "ACC4711",
    "StudyDescription": "Thorax pa/seitlich",
}


@pytest.fixture(scope="module")
def cxr_node(
    tmp_path_factory: pytest.TempPathFactory, pacs: OrthancServer
) -> Iterator[RunningNode]:
    """A node with a rule for radiographs."""
    folder = tmp_path_factory.mktemp("cxr-node")
    with RunningNode(folder, pacs, RunningNode.free_ports(), more=RULE) as running:
        yield running


@pytest.fixture(scope="module")
def chest_shades() -> np.ndarray:
    """The chest CR as a display shows it, every fourth pixel."""
    ds = pydicom.dcmread(CHEST_CR)
    values = ds.pixel_array[::4, ::4].astype(float)
    assert ds.PhotometricInterpretation == "MONOCHROME1"
    return 1 - values / 32767


def study_of(folder: Path, instances: list[pydicom.Dataset], **attributes: Any) -> Study:
    """One new study of one series, by a made-up patient; the pixels are uncompressed."""
    folder.mkdir(parents=True)
    study, series = (generate_uid(prefix="1.2.826.0.1.3680043.10.1499.") for _ in "12")
    files = []
    for number, ds in enumerate(instances, start=1):
        for keyword, value in {**PATIENT, "BurnedInAnnotation": "NO", **attributes}.items():
            if value is None:
                ds.pop(keyword, None)
            else:
                setattr(ds, keyword, value)
        ds.StudyInstanceUID, ds.SeriesInstanceUID = study, series
        ds.SOPInstanceUID = generate_uid(prefix="1.2.826.0.1.3680043.10.1499.")
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        ds.InstanceNumber = number
        file = folder / f"{number:04d}.dcm"
        ds.save_as(file, enforce_file_format=True)
        files.append(file)
    uids = frozenset(str(ds.SOPInstanceUID) for ds in instances)
    return Study(tuple(files), folder, study, series, "", uids)


def decompressed(path: Path) -> pydicom.Dataset:
    ds = pydicom.dcmread(path)
    ds.decompress()
    assert ds.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    return ds


def masks(seg: pydicom.Dataset) -> dict[str, np.ndarray]:
    """Each segment's mask by its label."""
    frames = np.atleast_3d(seg.pixel_array) if seg.NumberOfFrames > 1 else seg.pixel_array[None]
    labels = {one.SegmentNumber: one.SegmentLabel for one in seg.SegmentSequence}
    found = {}
    for frame, groups in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        if "SegmentIdentificationSequence" not in groups:
            groups = seg.SharedFunctionalGroupsSequence[0]
        number = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        found[labels[number]] = frame > 0
    return found


def sent_and_back(
    node: RunningNode, pacs: OrthancServer, study: Study, folder: Path
) -> pydicom.Dataset:
    """Push a study; the one SEG that the PACS then holds, which dciodvfy finds no error in."""
    sent = node.receive(study)
    assert sent.returncode == 0, sent.stderr
    job = node.wait_for(study)
    assert (job["state"], job["cause"]) == ("confirmed", "")
    [seg] = segmentations(pacs, study)
    file = folder / "seg.dcm"
    file.write_bytes(seg)
    checked = subprocess.run(
        ["dciodvfy", str(file)], capture_output=True, text=True, check=False, errors="replace"
    )
    lines = (checked.stdout + checked.stderr).splitlines()
    assert [line for line in lines if line.startswith("Error")] == []
    return pydicom.dcmread(io.BytesIO(seg))


def test_a_computed_radiograph_comes_home_as_a_seg_of_its_patient(
    cxr_node: RunningNode, pacs: OrthancServer, tmp_path: Path
) -> None:
    """The real CR, MONOCHROME1: two lungs, on the right sides, tied to that image."""
    study = study_of(tmp_path / "cr", [decompressed(CHEST_CR)])
    seg = sent_and_back(cxr_node, pacs, study, tmp_path)
    assert (seg.PatientID, str(seg.PatientName)) == (PATIENT["PatientID"], PATIENT["PatientName"])
    assert seg.StudyInstanceUID == study.study_instance_uid
    [series] = seg.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == study.series_instance_uid
    [reference] = series.ReferencedInstanceSequence
    assert {reference.ReferencedSOPInstanceUID} == study.sop_instance_uids
    found = masks(seg)
    assert set(found) == {"Left lung", "Right lung"}
    columns = {label: np.argwhere(mask)[:, 1].mean() for label, mask in found.items()}
    assert columns["Left lung"] > columns["Right lung"]


def test_either_polarity_gives_the_same_lungs(
    cxr_node: RunningNode, pacs: OrthancServer, tmp_path: Path, chest_shades: np.ndarray
) -> None:
    """One picture, stored as CR in MONOCHROME1 and as DX in MONOCHROME2."""
    found = {}
    for modality, photometric in (("CR", "MONOCHROME1"), ("DX", "MONOCHROME2")):
        ds = radiograph(chest_shades, modality=modality, photometric=photometric, bits=14)
        study = study_of(tmp_path / modality, [ds])
        found[photometric] = masks(sent_and_back(cxr_node, pacs, study, tmp_path))
    for label in ("Left lung", "Right lung"):
        assert dice(found["MONOCHROME1"][label], found["MONOCHROME2"][label]) > 0.999


def test_of_pa_and_lateral_the_pa_comes_back_and_the_other_is_named(
    cxr_node: RunningNode, pacs: OrthancServer, tmp_path: Path, chest_shades: np.ndarray
) -> None:
    """The lateral comes first in the series; the SEG refers to the PA alone."""
    lateral = radiograph(chest_shades, ViewPosition="LL", orientation=("A", "F"))
    frontal = radiograph(chest_shades)
    study = study_of(tmp_path / "both", [lateral, frontal])
    seg = sent_and_back(cxr_node, pacs, study, tmp_path)
    [reference] = seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert reference.ReferencedSOPInstanceUID == frontal.SOPInstanceUID
    job = cxr_node.job(cxr_node.jobs_of(study)[0]["id"])
    [left_out] = job["facts"]["left_out"]
    assert left_out.startswith("Instance 1 is a lateral")


def test_without_orientation_the_seg_claims_no_side(
    cxr_node: RunningNode, pacs: OrthancServer, tmp_path: Path, chest_shades: np.ndarray
) -> None:
    """One segment, called lungs."""
    study = study_of(tmp_path / "unsided", [radiograph(chest_shades, orientation=None)])
    assert set(masks(sent_and_back(cxr_node, pacs, study, tmp_path))) == {"Lungs"}


@pytest.mark.parametrize(
    ("attributes", "state", "cause"),
    [
        ({}, "rejected", "shows the extremity (BodyPartExamined)"),
        ({"BodyPartExamined": None}, "rejected", "found none of"),
    ],
)
def test_a_leg_is_no_chest(
    cxr_node: RunningNode,
    tmp_path: Path,
    attributes: dict[str, Any],
    state: str,
    cause: str,
) -> None:
    """Refused by what the header says, or empty because the network finds nothing in it."""
    study = study_of(tmp_path / "leg", [decompressed(LEG_CR)], **attributes)
    cxr_node.receive(study)
    job = cxr_node.wait_for(study)
    assert job["state"] == state
    assert cause in job["cause"], json.dumps(job)
    assert job["remedy"]


def test_a_radiograph_that_does_not_say_whether_text_is_burned_in_is_held(
    cxr_node: RunningNode, tmp_path: Path, chest_shades: np.ndarray
) -> None:
    """The de-identifier's rule stands for radiographs: a person looks first."""
    study = study_of(tmp_path / "burned", [radiograph(chest_shades)], BurnedInAnnotation=None)
    cxr_node.receive(study)
    job = cxr_node.wait_for(study)
    assert job["state"] == "quarantined"
    assert "Burned In Annotation" in job["cause"]
