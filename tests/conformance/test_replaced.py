"""A newer result replaces an earlier one: each destination is told of exactly what it has taken."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from anonymizer.errors import ReferenceMismatch
from anonymizer.release import check_released
from anonymizer.sealed_crosswalk import Sealed, open_crosswalk
from node.jobs import Job
from node.kinds import ResultKind
from node.pipeline.outbound import Profile, lasting, outgoing
from node.pipeline.replaced import replaced_by, replaced_uids
from tests.journey import Journey, part10
from tests.phantoms import ct_series

SEG, CAPTURE, REJECTION = ResultKind.SEG, ResultKind.CAPTURE, ResultKind.REJECTION
TAKES_NOTES = Profile((SEG, REJECTION))
PROFILES = {
    "pacs": TAKES_NOTES,
    "archive": Profile((SEG,)),
    "viewer": Profile((CAPTURE, REJECTION)),
}
PATIENT = {"PatientName": "Sentinelius^Quirin", "PatientID": "MRN-SENTINEL", "StudyID": "S1"}


def taken(job: Job, *destinations: str) -> Job:
    """The job after these destinations have taken all that they get."""
    delivery = {
        name: {"state": "confirmed", "accepted": {one.name: "" for one in outgoing(job, name)}}
        for name in destinations
    }
    return replace(
        job, id=f"{job.id}-{len(job.instance_ids)}", facts={**job.facts, "delivery": delivery}
    )


def processed(
    folder: Path, series: Sequence[Dataset], earlier: Sequence[Job], profiles: Mapping[str, Profile]
) -> Journey:
    journey = Journey(folder, series, profiles, earlier)
    journey.segmented()
    journey.encoded()
    return journey


@pytest.fixture(scope="module")
def series() -> list[Dataset]:
    made = ct_series(slices=24, rows=48, columns=48, spacing_mm=(5.0, 6.5, 7.5), **PATIENT)
    study, uid = generate_uid(), generate_uid()
    for one in made:
        one.StudyInstanceUID, one.SeriesInstanceUID = study, uid
    return made


@pytest.fixture(scope="module")
def first(series: list[Dataset], tmp_path_factory: pytest.TempPathFactory) -> Journey:
    """Of the first twenty slices."""
    return processed(tmp_path_factory.mktemp("first"), series[:20], (), PROFILES)


@pytest.fixture(scope="module")
def second(
    first: Journey, series: list[Dataset], tmp_path_factory: pytest.TempPathFactory
) -> Journey:
    """Of all, after everybody but the viewer has taken the first."""
    earlier = [taken(first.job, "pacs", "archive")]
    return processed(tmp_path_factory.mktemp("second"), series, earlier, PROFILES)


def rejected(note: bytes) -> set[str]:
    """SOP Instance UIDs that an archive reads from a note."""
    [study] = dcmread(io.BytesIO(note)).CurrentRequestedProcedureEvidenceSequence
    return {
        str(one.ReferencedSOPInstanceUID)
        for series in study.ReferencedSeriesSequence
        for one in series.ReferencedSOPSequence
    }


def uids(job: Job, destination: str, kind: ResultKind) -> set[str]:
    return {one.sop_instance_uid for one in outgoing(job, destination) if one.kind is kind}


def test_only_who_took_the_earlier_result_and_takes_notes_gets_one(second: Journey) -> None:
    """The archive takes no notes, the viewer never got what would be rejected."""
    kinds = {name: {one.kind for one in outgoing(second.job, name)} for name in PROFILES}
    assert kinds == {"pacs": {SEG, REJECTION}, "archive": {SEG}, "viewer": {CAPTURE}}


def test_what_the_compute_zone_can_read_names_no_destination(second: Journey) -> None:
    """Neither the name of a file nor what is in it: who the hospital's systems are is its own."""
    files = [path for path in (second.folder / "artifacts").rglob("*") if path.is_file()]
    assert any(REJECTION in file.name for file in files)
    seen = "\n".join(str(file.relative_to(second.folder)) for file in files).encode()
    seen += b"".join(file.read_bytes() for file in files if file.suffix != ".png")
    assert [name for name in PROFILES if name.encode() in seen] == []


def test_the_note_comes_home_with_its_patient_and_is_valid(
    first: Journey, second: Journey, series: list[Dataset], tmp_path: Path
) -> None:
    """It names the earlier SEG and nothing else; dicom3tools finds no error; sent after the new."""
    home = second.reidentified("pacs")
    assert list(home) == [SEG, REJECTION]
    [note] = home[REJECTION]
    assert rejected(note) == uids(first.job, "pacs", SEG)
    assert not rejected(note) & uids(second.job, "pacs", SEG)
    read = dcmread(io.BytesIO(note))
    assert read.PatientName == PATIENT["PatientName"]
    assert read.StudyInstanceUID == series[0].StudyInstanceUID
    assert read.ConceptNameCodeSequence[0].CodeValue == "113001"
    file = tmp_path / "note.dcm"
    file.write_bytes(note)
    checked = subprocess.run(["dciodvfy", str(file)], capture_output=True, text=True, check=False)
    said = (checked.stdout + checked.stderr).splitlines()
    assert [line for line in said if line.startswith("Error")] == []


def test_what_was_rejected_before_is_not_rejected_again(first: Journey, second: Journey) -> None:
    """A third result replaces the second; some archives refuse a note about a rejected object."""
    third = replace(
        second.job, id="third", instance_ids=(*second.job.instance_ids, "more"), facts={}
    )
    earlier = [taken(first.job, "pacs"), taken(second.job, "pacs", "viewer")]
    found = replaced_by(third, earlier)
    assert {one.sop_instance_uid for one in found["pacs"]} == uids(second.job, "pacs", SEG)
    assert {one.kind for one in found["viewer"]} == {CAPTURE}


def test_other_models_and_other_series_are_left_alone(first: Journey, second: Journey) -> None:
    """And so is what knows the same instances."""
    before = taken(first.job, "pacs")
    others = [
        replace(before, model="other"),
        replace(before, series_id="other"),
        replace(before, instance_ids=second.job.instance_ids),
    ]
    assert replaced_by(second.job, others) == {}


def test_a_page_that_said_why_there_was_no_result_is_replaced(
    first: Journey, second: Journey
) -> None:
    """The gap was filled: what said so is rejected like a result."""
    before = taken(first.job, "pacs")
    found = replaced_by(second.job, [replace(before, facts=lasting(before))])
    assert {one.sop_instance_uid for one in found["pacs"]} == uids(first.job, "pacs", SEG)


def test_a_note_about_an_image_of_the_hospital_stops_at_the_gate(
    second: Journey, series: list[Dataset]
) -> None:
    """However it came about: an archive would hide the patient's own images."""
    [note] = second.reidentified("pacs")[REJECTION]
    sealed = Sealed(second.job.facts["study"], second.job.facts["crosswalk"])
    crosswalk = open_crosswalk(second.vault, sealed).crosswalk
    about = replaced_uids(second.job)
    check_released(note, crosswalk, rejected=about)

    damaged = dcmread(io.BytesIO(note))
    listed = damaged.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    image = Dataset()
    image.ReferencedSOPClassUID = series[0].SOPClassUID
    image.ReferencedSOPInstanceUID = series[0].SOPInstanceUID
    listed.ReferencedSOPSequence.append(image)
    with pytest.raises(ReferenceMismatch):
        check_released(part10(damaged), crosswalk, rejected=about)
    with pytest.raises(ReferenceMismatch):
        check_released(note, crosswalk, rejected={generate_uid(prefix="2.25.")})
