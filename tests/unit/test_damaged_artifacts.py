"""Working data that were damaged are made again from the received instances, a few times."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread

from node.edges.ledger import Ledger
from node.errors import DamagedArtifact
from node.jobs import Done, Job, State, StepName, Wish, unsuitable
from node.pipeline.outbound import Profile
from node.pipeline.working_data import PICTURE
from tests.journey import Journey
from tests.ledger_case import claimed, run_step
from tests.phantoms import ct_series


def damage(journey: Journey, job_id: str, folder: str) -> Path:
    """Cut one file of a bundle short, as a power loss does."""
    root = journey.folder / "artifacts" / job_id / folder
    path = min(one for one in root.rglob("*") if one.suffix in (".dcm", ".npz"))
    path.write_bytes(path.read_bytes()[:100])
    return path


def test_deidentifying_again_makes_the_same_bundle(tmp_path: Path) -> None:
    """Byte for byte: what was inferred of the first is good for the second."""
    journey = Journey(tmp_path, ct_series(), {"pacs": Profile()})
    journey.deidentified()
    first = journey.job.facts["instances_digest"]
    path = damage(journey, "job", "instances")
    journey.deidentified()
    assert journey.job.facts["instances_digest"] == first
    assert dcmread(path).SOPInstanceUID


@pytest.mark.parametrize("folder", ["instances", "label_map"])
def test_encode_does_not_read_what_was_altered(tmp_path: Path, folder: str) -> None:
    """A truncated slice is no DamagedInstance, and an empty label map no result."""
    journey = Journey(tmp_path, ct_series(), {"pacs": Profile()})
    journey.segmented()
    damage(journey, "job", folder)
    with pytest.raises(DamagedArtifact, match="missing or altered"):
        journey.encoded()


def test_nothing_altered_gets_its_patient_back(tmp_path: Path) -> None:
    """A Segmentation that changed on the disk is not sent; and the job knows its picture."""
    journey = Journey(tmp_path, ct_series(), {"pacs": Profile()})
    journey.segmented()
    journey.encoded()
    picture = journey.artifacts.get("job/overlay.png")
    assert journey.job.facts[PICTURE] == hashlib.sha256(picture).hexdigest()
    damage(journey, "job", "results")
    with pytest.raises(DamagedArtifact, match=r"seg\.dcm of results"):
        journey.reidentified()


def test_a_label_map_of_other_instances_is_not_taken(tmp_path: Path) -> None:
    """A model that ends late, on instances of a former epoch, cannot be mistaken for ours."""
    journey = Journey(tmp_path, ct_series(), {"pacs": Profile()})
    journey.segmented()
    other = {**journey.job.facts, "instances_digest": journey.job.facts["label_map_digest"]}
    journey.job = replace(journey.job, facts=other)
    with pytest.raises(DamagedArtifact):
        journey.encoded()


class Processed:
    """A job of a real ledger that goes its way step by step, with damage in between."""

    def __init__(self, folder: Path, series: list[Dataset]) -> None:
        self.journey = Journey(folder, series, {"pacs": Profile()})
        self.ledger = Ledger(f"sqlite:///{folder / 'ledger.sqlite'}")
        wish = Wish("rule", "1", "ct_lungs", self.journey.job.model_digest, ("pacs",))
        ids = self.journey.job.instance_ids
        self.id = self.ledger.request("series", "study", ids, wish).id
        self.visited: list[StepName] = []

    @property
    def job(self) -> Job:
        found = self.ledger.job(self.id)
        assert found is not None
        return found

    def run(self, until: Callable[[Job], bool]) -> Job:
        """Step by step until the job stops or ``until`` holds."""
        known = self.journey.steps()
        steps = {name: known.get(name, lambda _: Done()) for name in StepName}
        while self.job.state is State.QUEUED and not until(self.job):
            self.visited.append(self.job.step)
            run_step(self.ledger, self.job, steps[self.job.step])
        return self.job

    def damage(self, folder: str) -> None:
        damage(self.journey, self.id, folder)


@pytest.mark.parametrize(
    ("before", "folder"),
    [
        (StepName.ENCODE, "instances"),
        (StepName.ENCODE, "label_map"),
        (StepName.REIDENTIFY, "results"),
    ],
)
def test_what_was_damaged_is_made_again_and_the_result_is_the_same(
    tmp_path: Path, before: StepName, folder: str
) -> None:
    """From the received instances on; the job ends as if nothing had happened."""
    undisturbed = Processed(tmp_path / "undisturbed", ct_series())
    expected = undisturbed.run(lambda _: False)
    processed = Processed(tmp_path / "processed", ct_series())
    processed.run(lambda job: job.step is before)
    processed.damage(folder)
    job = processed.run(lambda _: False)
    assert job.state is expected.state is State.CONFIRMED
    assert processed.visited.count(StepName.DEIDENTIFY) == 2
    assert job.facts["remade"] == 1
    same = ("instances_digest", "label_map_digest")
    assert [job.facts[name] for name in same] == [expected.facts[name] for name in same]


def test_a_disk_that_damages_everything_fails_the_job_and_a_person_may_retry(
    tmp_path: Path,
) -> None:
    """Three times made again, then failed with the disk as its cause; a retry counts anew."""
    processed = Processed(tmp_path, ct_series())

    def spoiled(job: Job) -> bool:
        if job.step is StepName.ENCODE:
            processed.damage("label_map")
        return False

    job = processed.run(spoiled)
    assert (job.state, job.step, job.error) == (State.FAILED, StepName.ENCODE, "DamagedArtifact")
    assert "label_map.npz" in job.cause and "disk" in job.remedy
    assert processed.visited.count(StepName.DEIDENTIFY) == 4
    processed.ledger.retry(job.id)
    assert processed.run(lambda _: False).state is State.CONFIRMED


def test_a_series_that_cannot_be_segmented_is_still_explained_after_a_loss(tmp_path: Path) -> None:
    """The reason is found again, not carried along: what is remade may be whole."""
    processed = Processed(tmp_path, ct_series())
    processed.run(lambda job: job.step is StepName.INFER)
    job = claimed(processed.ledger, processed.job)
    told = {"unsuitable": {"error": "GeometryError", "cause": "a gap", "remedy": "send it again"}}
    processed.ledger.redirect(job, StepName.ENCODE, told, "a gap")
    processed.damage("instances")
    job = processed.run(lambda job: job.step is StepName.INFER)
    assert job.state is State.QUEUED
    assert unsuitable(job) is None
