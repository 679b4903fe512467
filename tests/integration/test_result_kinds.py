"""A whole node between two PACS: one takes every kind of result, one has never heard of SEG.

What arrives there, that it is the patient's, what the hospital is told of a series that is not
suitable, and that none of it names the patient on the way.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.uid import BasicTextSRStorage, SecondaryCaptureImageStorage, SegmentationStorage

from node.edges.orthanc_config import DicomPeer
from node.kinds import OF_MODELS
from tests.conftest import NO_BRIDGE
from tests.integration.test_round_trip import PATIENT_AND_STUDY, dciodvfy_errors, raw
from tests.orthanc_server import OrthancServer, require_orthanc
from tests.running_node import DEMO_CT, ENDED, SOME_SLICES, RunningNode, Study, made_up_study
from tests.test_no_phi_leaks import SENTINEL, files_below, leaks, sentinels

#: The keys come after those of the node's first peer, and a second one follows.
KINDS = list(OF_MODELS)
PEERS = """
results = {results}
[[dicom_peers]]
name = "old"
ae_title = "OLD"
host = "127.0.0.1"
port = {port}
"""


@dataclass
class Sent:
    """A node, its two PACS, and what became of two studies."""

    node: RunningNode
    pacs: OrthancServer
    old: OrthancServer
    good: Study
    gap: Study
    good_job: dict[str, Any]
    gap_job: dict[str, Any]
    held: dict[str, bytes]

    def objects(self, pacs: OrthancServer, study: Study) -> list[pydicom.Dataset]:
        """All that a PACS holds of a study."""
        query = {"StudyInstanceUID": study.study_instance_uid}
        found = pacs.post("/tools/find", json={"Level": "Instance", "Query": query}).json()
        files = (pacs.get(f"/instances/{one}/file").content for one in found)
        return [pydicom.dcmread(io.BytesIO(file)) for file in files]


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sent]:
    """A sentinel study that is segmented, and one with a gap; both until they end."""
    require_orthanc()
    folder = tmp_path_factory.mktemp("kinds")
    ports = RunningNode.free_ports()
    me = [DicomPeer("segnode", "SEGNODE", "127.0.0.1", ports["dicom"], may_query=True)]
    before_seg = {"RejectSopClasses": [SegmentationStorage]}
    with (
        OrthancServer(folder / "pacs", ae_title="HOSPITAL", peers=me, bridge=NO_BRIDGE) as pacs,
        OrthancServer(
            folder / "old", ae_title="OLD", peers=me, bridge=NO_BRIDGE, config_overrides=before_seg
        ) as old,
        RunningNode(
            folder / "node",
            pacs,
            ports,
            destinations=["sender", "old"],
            explain=True,
            more=PEERS.format(results=json.dumps(KINDS), port=old.dicom_port),
        ) as node,
    ):
        slices = DEMO_CT[SOME_SLICES]
        good = made_up_study(folder / "good", slices, **SENTINEL)
        gap = made_up_study(folder / "gap", slices[:8] + slices[11:], **SENTINEL)
        held: dict[str, bytes] = {}

        def ended(job: dict[str, Any]) -> bool:
            held.update(files_below(node.var / "artifacts"))
            return job["state"] in ENDED

        jobs = []
        for study in (good, gap):
            assert node.receive(study).returncode == 0
            jobs.append(node.wait_for(study, ended, timeout_s=420))
        yield Sent(node, pacs, old, good, gap, jobs[0], jobs[1], held)


def test_every_kind_arrives_with_its_patient(sent: Sent, tmp_path: Path) -> None:
    """All six, proven, valid, with the study's own bytes for patient and study."""
    assert (sent.good_job["state"], sent.good_job["cause"]) == ("confirmed", "")
    kept = {one["destination"]: one["state"] for one in sent.good_job["deliveries"]}
    assert kept == {"hospital": "confirmed", "old": "confirmed"}
    source = pydicom.dcmread(sent.good.files[0], stop_before_pixels=True)
    found = sent.objects(sent.pacs, sent.good)
    assert {str(one.SOPClassUID) for one in found} == {kind.sop_class_uid for kind in KINDS}
    checked = set()
    for one in found:
        for keyword in PATIENT_AND_STUDY:
            assert (keyword in one) == (keyword in source), keyword
            if keyword in source:
                assert raw(one, keyword) == raw(source, keyword), keyword
        if one.SOPClassUID not in checked:
            checked.add(one.SOPClassUID)
            stream = io.BytesIO()
            one.save_as(stream, enforce_file_format=True)
            assert dciodvfy_errors(stream.getvalue(), tmp_path) == []


def test_a_pacs_that_refuses_the_seg_gets_pictures_and_the_job_says_so(sent: Sent) -> None:
    """Captures of the same slices as for the other PACS, nothing else, once."""
    found = sent.objects(sent.old, sent.good)
    assert {one.SOPClassUID for one in found} == {SecondaryCaptureImageStorage}
    there = {
        one.SOPInstanceUID
        for one in sent.objects(sent.pacs, sent.good)
        if one.SOPClassUID == SecondaryCaptureImageStorage
    }
    assert {one.SOPInstanceUID for one in found} == there
    [old] = [one for one in sent.good_job["deliveries"] if one["destination"] == "old"]
    assert "0x0122" in old["fallback"]
    shown = sent.node.segnode("job", sent.good_job["id"])
    assert "captures instead" in " ".join(shown.split())
    tries = sent.node.job(sent.good_job["id"])["attempts"]
    assert "on to encode" in [one["outcome"] for one in tries if one["step"] == "deliver"]


def test_both_pacs_are_told_why_a_series_has_no_result(sent: Sent, tmp_path: Path) -> None:
    """One Basic Text SR of the patient with cause and remedy; the job is rejected with them."""
    job = sent.gap_job
    assert (job["state"], job["error"]) == ("rejected", "GeometryError")
    assert sorted(job["facts"]["explained"]) == ["hospital", "old"]
    for pacs in (sent.pacs, sent.old):
        [page] = sent.objects(pacs, sent.gap)
        assert page.SOPClassUID == BasicTextSRStorage
        assert page.PatientID == SENTINEL["PatientID"]
        section = page.ContentSequence[-1]
        said = "\n".join(item.TextValue for item in section.ContentSequence)
        assert job["cause"] in said and job["remedy"] in said
        stream = io.BytesIO()
        page.save_as(stream, enforce_file_format=True)
        assert dciodvfy_errors(stream.getvalue(), tmp_path) == []


def test_no_kind_names_the_patient_on_the_way(sent: Sent) -> None:
    """Artifacts as they were while jobs ran, vault, log, ledger: no sentinel anywhere."""
    seen = {name.rsplit("/", 1)[-1].split("-")[0].split(".")[0] for name in sent.held}
    assert set(map(str, KINDS)) <= seen, "not all kinds were seen as artifacts"
    wanted = sorted({*sentinels(sent.good), *sentinels(sent.gap)})
    found = [leak for name, data in sent.held.items() for leak in leaks(name, data, wanted)]
    for place in ("artifacts", "log", "vault", "run"):
        for name, data in files_below(sent.node.var / place):
            found += leaks(f"{place}/{name}", name.encode() + b"\n" + data, wanted)
    for path in sent.node.var.glob("ledger.sqlite*"):
        found += leaks(path.name, path.read_bytes(), wanted)
    assert found == []


def test_what_was_delivered_is_purged(sent: Sent) -> None:
    """No object of either job stays in the vault or among the artifacts."""
    for place in ("artifacts", "vault"):
        names = [name for name, _ in files_below(sent.node.var / place)]
        assert [name for name in names if "outbound" in name or "results/" in name] == []
