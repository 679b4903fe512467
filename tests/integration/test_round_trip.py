"""The promise: a CT that a PACS pushes comes back as a SEG with its patient, once."""

from __future__ import annotations

import io
import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pydicom
import pytest

from tests.orthanc_server import OrthancServer
from tests.running_node import (
    DEMO_CT,
    SOME_SLICES,
    RunningNode,
    Study,
    made_up_study,
    segmentations,
)

JAPANESE = {
    "SpecificCharacterSet": ["", "ISO 2022 IR 87"],
    "PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう",
}
LATIN_1 = {"SpecificCharacterSet": "ISO_IR 100", "PatientName": "Müller^Jürgen^Ægir"}
PATIENT = {
    "PatientID": "MRN-77.4711",
    "PatientBirthDate": "19510203",
    "PatientSex": "F",
    "AccessionNumber": "ACC20210817",
    "StudyDate": "20210817",
    "StudyTime": "101500",
    "StudyID": "S-42",
    "StudyDescription": "CT Thorax",
    "ReferringPhysicianName": "House^Gregory",
}
PATIENT_AND_STUDY = (*PATIENT, "PatientName", "StudyInstanceUID")


def raw(instance: pydicom.Dataset, keyword: str) -> bytes:
    """The bytes of a value as they stand in the file, padding removed."""
    element = instance.get_item(keyword)
    assert element is not None and isinstance(element.value, bytes), keyword
    return element.value.rstrip(b" \0")


def assert_is_the_patients(seg_bytes: bytes, study: Study) -> None:
    """The SEG has the study's patient byte for byte, its frame of reference, and its instances."""
    seg = pydicom.dcmread(io.BytesIO(seg_bytes))
    sent = pydicom.dcmread(study.files[0], stop_before_pixels=True)
    assert seg.SpecificCharacterSet == sent.SpecificCharacterSet
    for keyword in PATIENT_AND_STUDY:
        assert raw(seg, keyword) == raw(sent, keyword), keyword
    assert seg.FrameOfReferenceUID == study.frame_of_reference_uid
    series = seg.ReferencedSeriesSequence
    assert [one.SeriesInstanceUID for one in series] == [study.series_instance_uid]
    listed = {one.ReferencedSOPInstanceUID for one in series[0].ReferencedInstanceSequence}
    assert listed == study.sop_instance_uids
    for frame in seg.PerFrameFunctionalGroupsSequence:
        source = frame.DerivationImageSequence[0].SourceImageSequence[0]
        assert source.ReferencedSOPInstanceUID in study.sop_instance_uids
    assert seg.StudyInstanceUID == study.study_instance_uid
    assert "PatientIdentityRemoved" not in seg or sent.get("PatientIdentityRemoved") == "YES"


def dciodvfy_errors(data: bytes, folder: Path) -> list[str]:
    """What dicom3tools finds wrong with an object."""
    file = folder / "checked.dcm"
    file.write_bytes(data)
    done = subprocess.run(
        ["dciodvfy", str(file)], capture_output=True, text=True, check=False, errors="replace"
    )
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]


@pytest.mark.parametrize("name", [LATIN_1, JAPANESE], ids=["latin-1", "japanese"])
def test_a_pushed_ct_comes_back_as_a_seg_of_the_same_patient(
    node: RunningNode, pacs: OrthancServer, tmp_path: Path, name: dict[str, object]
) -> None:
    """storescu sends; findscu finds one SEG; patient, study and references are the originals."""
    study = made_up_study(tmp_path / "ct", DEMO_CT[SOME_SLICES], **PATIENT, **name)
    sent = node.receive(study)
    assert sent.returncode == 0, sent.stderr
    job = node.wait_for(study)
    assert (job["state"], job["cause"]) == ("confirmed", "")
    [delivery] = job["deliveries"]
    assert (delivery["state"], delivery["proof"]) == ("confirmed", "storage commitment")

    found = subprocess.run(
        [
            "/usr/bin/findscu", "-S", "-aet", "TESTER", "-aec", "HOSPITAL", "127.0.0.1",
            str(pacs.dicom_port), "-k", "QueryRetrieveLevel=IMAGE",
            "-k", f"StudyInstanceUID={study.study_instance_uid}", "-k", "Modality=SEG",
            "-k", "SOPInstanceUID", "-k", "SeriesInstanceUID",
        ],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (found.stdout + found.stderr).count("Find Response:") == 1
    [seg] = segmentations(pacs, study)
    assert_is_the_patients(seg, study)
    assert dciodvfy_errors(seg, tmp_path) == []


def test_a_study_by_stow_rs_comes_back_to_the_rules_destination(
    pacs: OrthancServer, tmp_path: Path, stow_node: RunningNode
) -> None:
    """curl stores by STOW-RS; the SEG is stored where the rule says, for there is no sender."""
    study = made_up_study(tmp_path / "ct", DEMO_CT[SOME_SLICES], **PATIENT, **LATIN_1)
    assert stow_node.stow(study) == 200
    job = stow_node.wait_for(study)
    assert (job["state"], job["cause"]) == ("confirmed", "")
    [seg] = segmentations(pacs, study)
    assert_is_the_patients(seg, study)
    assert dciodvfy_errors(seg, tmp_path) == []


def test_a_killed_compute_worker_costs_time_and_nothing_else(
    node: RunningNode, pacs: OrthancServer, tmp_path: Path
) -> None:
    """SIGKILL in the middle of inference; the supervisor starts it again; exactly one SEG."""
    study = made_up_study(tmp_path / "ct", DEMO_CT)
    compute = node.processes("compute")  # before, because inference takes less time than asking
    node.receive(study)
    node.wait_for(study, lambda job: job["step"] == "infer" and job["progress"] > 0.1)
    for pid in compute:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    job = node.wait_for(study)
    assert job["state"] == "confirmed"
    tries = [one for one in node.job(job["id"])["attempts"] if one["step"] == "infer"]
    assert [one["outcome"] for one in tries] == ["lease ran out", "done"]
    assert len(segmentations(pacs, study)) == 1


def test_stow_rs_from_a_stranger_is_refused(node: RunningNode, tmp_path: Path) -> None:
    """Without the password nothing is stored."""
    answer = subprocess.run(
        ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-X", "POST",
         f"{node.url}/dicom-web/studies"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert answer.stdout == "401"


def test_storescu_from_a_stranger_is_refused(node: RunningNode, tmp_path: Path) -> None:
    """An AE title that is no peer gets no association."""
    study = made_up_study(tmp_path / "ct", DEMO_CT[:1])
    refused = node.receive(study, ae_title="STRANGER")
    assert refused.returncode != 0
    assert node.series_id(study) == ""
