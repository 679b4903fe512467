"""The rejection note: a valid Key Object Selection that names earlier results, and only them."""

from __future__ import annotations

import subprocess
from datetime import datetime
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import KeyObjectSelectionDocumentStorage

from node.kinds import ResultKind
from node.packages import find_models
from node.results.rejection import Replaced, encode_rejection
from node.results.seg import Algorithm
from node.results.uids import ResultIdentity
from tests.phantoms import ct_series

MODELS = Path(__file__).resolve().parents[2] / "models"
REPLACED = [
    Replaced(ResultKind.SEG.sop_class_uid, "2.25.10", "2.25.11"),
    Replaced(ResultKind.SR.sop_class_uid, "2.25.20", "2.25.21"),
    Replaced(ResultKind.CAPTURE.sop_class_uid, "2.25.30", "2.25.31"),
    Replaced(ResultKind.CAPTURE.sop_class_uid, "2.25.30", "2.25.32"),
]


@pytest.fixture(scope="module")
def sources() -> list[Dataset]:
    return ct_series(slices=3, rows=8, columns=8)


@pytest.fixture(scope="module")
def note(sources: list[Dataset]) -> Dataset:
    identity = ResultIdentity.for_job(
        "a job's key",
        series_number=9006,
        series_description="ct_lungs rejection",
        created=datetime(2026, 11, 3, 12, 30, 1),
        software_version="0.1.0",
        kind="rejection",
    )
    algorithm = Algorithm.of(find_models(MODELS)["ct_lungs"])
    return encode_rejection(REPLACED, sources, algorithm, identity)


def test_dciodvfy_and_dsrdump_read_it(note: Dataset, tmp_path: Path) -> None:
    """dicom3tools finds no error; DCMTK renders the document with its title."""
    file = tmp_path / "note.dcm"
    note.save_as(file, enforce_file_format=True)
    checked = subprocess.run(["dciodvfy", str(file)], capture_output=True, text=True, check=False)
    said = (checked.stdout + checked.stderr).splitlines()
    assert [line for line in said if line.startswith("Error")] == []
    assert "KeyObjectSelectionDocument" in said
    dumped = subprocess.run(
        ["/usr/bin/dsrdump", "+Pc", str(file)], capture_output=True, text=True, check=True
    )
    assert "Rejected for Quality Reasons" in dumped.stdout
    assert "Key Object Selection" in dumped.stdout


def test_it_rejects_the_earlier_results_and_no_image(
    note: Dataset, sources: list[Dataset], tmp_path: Path
) -> None:
    """An archive reads the evidence: every earlier object with class and series, no source."""
    file = tmp_path / "note.dcm"
    note.save_as(file, enforce_file_format=True)
    read = dcmread(file)
    assert read.SOPClassUID == KeyObjectSelectionDocumentStorage
    title = read.ConceptNameCodeSequence[0]
    assert (title.CodeValue, title.CodingSchemeDesignator) == ("113001", "DCM")
    [study] = read.CurrentRequestedProcedureEvidenceSequence
    assert study.StudyInstanceUID == sources[0].StudyInstanceUID
    rejected = [
        Replaced(
            instance.ReferencedSOPClassUID,
            series.SeriesInstanceUID,
            instance.ReferencedSOPInstanceUID,
        )
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    ]
    assert rejected == REPLACED
    written = file.read_bytes()
    assert all(str(one.SOPInstanceUID).encode() not in written for one in sources)


def test_its_references_have_the_value_type_of_what_they_name(note: Dataset) -> None:
    """Images are referred to as images, documents as composite objects (TID 2010)."""
    references = [item for item in note.ContentSequence if "ReferencedSOPSequence" in item]
    assert [item.ValueType for item in references] == ["IMAGE", "COMPOSITE", "IMAGE", "IMAGE"]
