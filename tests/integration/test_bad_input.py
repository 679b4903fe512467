"""What cannot be processed ends in a named state with a remedy, is kept, and holds up nobody."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian

from tests.orthanc_server import OrthancServer
from tests.running_node import (
    DEMO_CT,
    SOME_SLICES,
    RunningNode,
    Study,
    made_up_study,
    segmentations,
)

SLICES = DEMO_CT[SOME_SLICES]


@dataclass(frozen=True)
class Case:
    """One kind of bad input, how it is made, and how it must end."""

    name: str
    make: Callable[[Path], Study]
    error: str
    said: str


def gap(folder: Path) -> Study:
    """Three slices of the middle are missing."""
    return made_up_study(folder, SLICES[:10] + SLICES[13:])


def duplicates(folder: Path) -> Study:
    """One slice is there twice, under another SOP Instance UID."""
    return made_up_study(folder, [*SLICES, SLICES[5]])


def single_slice(folder: Path) -> Study:
    """One image is no volume."""
    return made_up_study(folder, SLICES[:1])


def tilt(folder: Path) -> Study:
    """Each slice is shifted against its neighbour, as a tilted gantry does."""

    def shift(instance: pydicom.Dataset, number: int) -> None:
        x, y, z = instance.ImagePositionPatient
        instance.ImagePositionPatient = [x, float(y) + 0.8 * number, z]

    return made_up_study(folder, SLICES, shift)


def localizer(folder: Path) -> Study:
    """A scout view, which a PACS routes together with the series."""
    return made_up_study(folder, SLICES[:2], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])


def head(folder: Path) -> Study:
    """A series that says that it shows the head."""
    return made_up_study(folder, SLICES, BodyPartExamined="HEAD")


def screenshot(folder: Path) -> Study:
    """Colour screenshots stored as CT, with geometry copied from the real images."""

    def paint(instance: pydicom.Dataset, _number: int) -> None:
        instance.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        instance.SamplesPerPixel, instance.PhotometricInterpretation = 3, "RGB"
        instance.PlanarConfiguration = 0
        instance.BitsAllocated = instance.BitsStored = 8
        instance.HighBit, instance.PixelRepresentation = 7, 0
        instance.Rows = instance.Columns = 64
        instance.PixelData = np.zeros((64, 64, 3), np.uint8).tobytes()
        instance["PixelData"].VR = "OB"
        instance.ImageType = ["DERIVED", "SECONDARY", "SCREEN SAVE"]

    return made_up_study(folder, SLICES[:20], paint)


def truncated(folder: Path) -> Study:
    """The pixel data of one image ends half-way, inside a file that is otherwise whole."""

    def cut(instance: pydicom.Dataset, number: int) -> None:
        instance.decompress()
        if number == 3:
            instance.PixelData = instance.PixelData[: len(instance.PixelData) // 2]

    return made_up_study(folder, SLICES[:20], cut)


def structured_report(folder: Path) -> Study:
    """A report: DICOM, but no image."""

    def become_report(instance: pydicom.Dataset, _number: int) -> None:
        instance.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"  # Basic Text SR
        instance.Modality = "SR"
        instance.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        del instance.PixelData

    return made_up_study(folder, SLICES[:1], become_report)


def burned_in(folder: Path) -> Study:
    """Images that say that a name is painted into them."""
    return made_up_study(folder, SLICES, BurnedInAnnotation="YES")


CASES = (
    Case("gap", gap, "Incomplete", "missing in 1 gap"),
    Case("duplicates", duplicates, "GeometryError", "position"),
    Case("single slice", single_slice, "GeometryError", "two or more"),
    Case("tilt", tilt, "GeometryError", "tilt"),
    Case("localizer", localizer, "NoMatchingModel", "ImageType"),
    Case("head", head, "UnsuitableInput", "BodyPartExamined"),
    Case("screenshot", screenshot, "IdentityUnsafe", "pixels"),
    Case("truncated", truncated, "DamagedInstance", "Pixel Data"),
    Case("report", structured_report, "NoMatchingModel", "Modality"),
    Case("burned in", burned_in, "IdentityUnsafe", "Burned In Annotation"),
)


@pytest.fixture(scope="module")
def sent(node: RunningNode, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Study]:
    """Every bad study, and after them a good one."""
    folder = tmp_path_factory.mktemp("bad")
    studies = {case.name: case.make(folder / case.name.replace(" ", "-")) for case in CASES}
    studies["good"] = made_up_study(folder / "good", SLICES)
    for study in studies.values():
        done = node.receive(study)
        assert done.returncode == 0, done.stderr
    return studies


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_ends_in_a_named_state_and_is_kept(
    node: RunningNode, sent: dict[str, Study], case: Case
) -> None:
    """State, cause and remedy are in `segnode jobs`; Orthanc still has every instance."""
    study = sent[case.name]
    job = node.wait_for(study)
    held = {"IdentityUnsafe": "quarantined", "Incomplete": "incomplete"}
    assert (job["state"], job["error"]) == (held.get(case.error, "rejected"), case.error)
    assert case.said.lower() in job["cause"].lower()
    assert job["remedy"]
    kept = node.orthanc(f"/series/{node.series_id(study)}").json()["Instances"]
    assert len(kept) == len(study.files)


def test_the_next_study_is_not_held_up(
    node: RunningNode, pacs: OrthancServer, sent: dict[str, Study]
) -> None:
    """The good study that came last is confirmed."""
    assert node.wait_for(sent["good"])["state"] == "confirmed"
    assert len(segmentations(pacs, sent["good"])) == 1


def test_what_is_no_dicom_is_refused_at_the_door(node: RunningNode) -> None:
    """Orthanc answers a non-DICOM upload with an error, so its sender knows."""
    answer = node.orthanc("/instances", "POST", content=b"this is not DICOM" * 100)
    assert answer.status_code == 400


def test_a_transfer_syntax_without_decoder_is_named(node: RunningNode, tmp_path: Path) -> None:
    """Pixels that nobody here decodes are refused with the name of their syntax."""

    def claim_mpeg(instance: pydicom.Dataset, _number: int) -> None:
        instance.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.102"  # MPEG-4 AVC

    study = made_up_study(tmp_path / "mpeg", SLICES[:20], claim_mpeg)
    for file in study.files:
        node.orthanc("/instances", "POST", content=file.read_bytes()).raise_for_status()
    job = node.wait_for(study)
    assert (job["state"], job["error"]) == ("rejected", "UnsupportedTransferSyntax")
    assert "MPEG-4" in job["cause"]


def test_a_rejected_job_is_retried_by_a_person(node: RunningNode, sent: dict[str, Study]) -> None:
    """Retry runs the step again, and the same cause comes back for the same input."""
    job = node.wait_for(sent["tilt"])
    node.segnode("retry", job["id"])
    again = node.wait_for(
        sent["tilt"],
        lambda one: one["state"] == "rejected" and one["updated_at"] != job["updated_at"],
    )
    assert again["error"] == "GeometryError"


def test_an_incomplete_series_goes_on_as_it_is_when_a_person_says_so(
    node: RunningNode, sent: dict[str, Study]
) -> None:
    """The model cannot take it, and now says so itself."""
    job = node.wait_for(sent["gap"], lambda one: one["state"] in ("incomplete", "rejected"))
    node.segnode("retry", job["id"])
    again = node.wait_for(sent["gap"], lambda one: one["state"] == "rejected")
    assert again["error"] == "GeometryError"


def test_a_late_instance_makes_a_new_job(
    node: RunningNode, pacs: OrthancServer, tmp_path: Path
) -> None:
    """The gap is filled later: the series is processed whole, and only then."""
    whole = made_up_study(tmp_path / "late", SLICES)
    first = Study(
        whole.files[:10] + whole.files[12:], whole.folder, whole.study_instance_uid,
        whole.series_instance_uid, whole.frame_of_reference_uid, whole.sop_instance_uids,
    )  # fmt: skip
    node.receive(first)
    assert node.wait_for(whole)["error"] == "Incomplete"
    node.receive(whole)
    job = node.wait_for(whole, lambda one: one["state"] == "confirmed")
    states = sorted(one["state"] for one in node.jobs_of(whole))
    assert job["facts"]["instances"] == len(SLICES)
    assert states == ["confirmed", "superseded"]
    assert len(segmentations(pacs, whole)) == 1


def test_a_late_instance_replaces_the_result_that_was_there(
    node: RunningNode, pacs: OrthancServer, tmp_path: Path
) -> None:
    """The end of a series comes a day late: a second SEG, and a note that rejects the first."""
    whole = made_up_study(tmp_path / "late", SLICES)
    begun = dataclasses.replace(whole, files=whole.files[:-4])
    node.receive(begun)
    first = node.wait_for(whole)
    assert (first["state"], first["facts"]["instances"]) == ("confirmed", len(SLICES) - 4)
    [before] = segmentations(pacs, whole)
    node.receive(whole)
    second = node.wait_for(
        whole, lambda one: one["state"] == "confirmed" and one["id"] != first["id"]
    )
    assert second["facts"]["instances"] == len(SLICES)
    assert len(segmentations(pacs, whole)) == 2
    query = {"StudyInstanceUID": whole.study_instance_uid, "Modality": "KO"}
    [found] = pacs.post("/tools/find", json={"Level": "Instance", "Query": query}).json()
    note = pydicom.dcmread(io.BytesIO(pacs.get(f"/instances/{found}/file").content))
    [study] = note.CurrentRequestedProcedureEvidenceSequence
    [series] = study.ReferencedSeriesSequence
    [rejected] = series.ReferencedSOPSequence
    old = pydicom.dcmread(io.BytesIO(before))
    assert rejected.ReferencedSOPInstanceUID == old.SOPInstanceUID
    assert series.SeriesInstanceUID == old.SeriesInstanceUID
    assert study.StudyInstanceUID == whole.study_instance_uid
    assert note.PatientID == old.PatientID
