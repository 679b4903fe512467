"""A whole node whose model is somebody else's program: Orthanc, Redis, Celery, PACS, all real."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest

from tests.orthanc_server import OrthancServer
from tests.packages.foreign_models import READS_DICOM, write_model
from tests.running_node import DEMO_CT, SOME_SLICES, RunningNode, made_up_study, segmentations

FEWEST = 20
PROGRAM = f"""
import os, sys
from lungs_of_dicom import main
found = len(os.listdir(sys.argv[1]))
if found < {FEWEST}:
    sys.exit(f"only {{found}} slices in {{sys.argv[1]}}")
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def program_node(
    tmp_path_factory: pytest.TempPathFactory, pacs: OrthancServer
) -> Iterator[RunningNode]:
    """A node with one model, named as the rule names it, that is a program."""
    folder = tmp_path_factory.mktemp("program-node") / "a node"
    run = ["{python}", "{model}/program.py", "{input}", "{output}"]
    write_model(folder / "models" / "ct_lungs", {**READS_DICOM, "run": run}, program=PROGRAM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGNODE_MODELS_DIR", str(folder / "models"))
        with RunningNode(folder, pacs, RunningNode.free_ports()) as running:
            yield running


def test_a_series_comes_back_segmented_by_the_program(
    tmp_path: Path, program_node: RunningNode, pacs: OrthancServer
) -> None:
    """What the program labels is what the PACS holds, on the slices of the patient."""
    study = made_up_study(tmp_path, DEMO_CT[SOME_SLICES], PatientID="MRN-77.4711")
    assert program_node.receive(study).returncode == 0
    job = program_node.wait_for(study)
    assert job["state"] == "confirmed", job
    (content,) = segmentations(pacs, study)
    seg = pydicom.dcmread(io.BytesIO(content))
    assert seg.PatientID == "MRN-77.4711"
    expected = {}
    for file in study.files:
        ds = pydicom.dcmread(file)
        hu = ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
        expected[ds.SOPInstanceUID] = (hu > -950) & (hu < -700)
    found = {uid: np.zeros_like(mask) for uid, mask in expected.items()}
    for frame, groups in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence, strict=True):
        source = groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        found[source] |= frame.astype(bool)
    for uid, mask in expected.items():
        np.testing.assert_array_equal(found[uid], mask)


def test_a_program_that_fails_says_why_in_the_ledger(
    tmp_path: Path, program_node: RunningNode
) -> None:
    """The job is rejected at once, with the program's last words and what to do."""
    study = made_up_study(tmp_path, DEMO_CT[:12])
    assert program_node.receive(study).returncode == 0
    job = program_node.wait_for(study)
    assert job["state"] == "rejected", job
    assert job["cause"] == (
        "The program failed with exit status 1; it wrote: only 12 slices in /input"
    )
    assert "Run the program by hand" in job["remedy"]
