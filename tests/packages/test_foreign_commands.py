"""What a person and a supervisor see of models that are programs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydicom import dcmread

from tests.packages.foreign_models import READS_DICOM, READS_NIFTI, write_model
from tests.phantoms import ct_series


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with a setting file and a models folder, as a site has it."""
    (tmp_path / "segnode.toml").write_text('models_dir = "models"\n')
    (tmp_path / "models").mkdir()
    return tmp_path


def segnode(site: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "node.cli", *arguments],
        cwd=site,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"], "COLUMNS": "200", **environment},
    )


def test_models_are_listed_with_their_program(site: Path) -> None:
    """A program is told apart from a network of the node's own."""
    write_model(site / "models" / "lungs", {**READS_NIFTI, "run": ["lungs", "{input}", "{output}"]})
    shown = segnode(site, "models")
    assert shown.returncode == 0, shown.stderr
    assert "runs lungs" in shown.stdout


def test_a_folder_is_processed_with_a_program(site: Path) -> None:
    """`segnode process FOLDER --model NAME --out OUT`, and the SEG is there."""
    write_model(site / "models" / "lungs", READS_DICOM)
    (site / "series").mkdir()
    for number, ds in enumerate(ct_series(slices=8, rows=40, columns=50, spacing_mm=(9, 6, 6))):
        ds.save_as(site / "series" / f"{number}.dcm", enforce_file_format=True)
    done = segnode(site, "process", "series", "--model", "lungs", "--out", "out")
    assert done.returncode == 0, done.stdout + done.stderr
    (written,) = (site / "out").glob("*.dcm")
    seg = dcmread(written)
    assert [item.SegmentLabel for item in seg.SegmentSequence] == ["Left lung", "Right lung"]


def test_a_compute_worker_without_the_program_does_not_start(site: Path) -> None:
    """Better at the start than with a patient waiting; cause and remedy are two lines."""
    write_model(
        site / "models" / "lungs", {**READS_NIFTI, "run": ["absent", "{input}", "{output}"]}
    )
    started = segnode(
        site,
        "run",
        "compute",
        SEGNODE_COMPUTE_BROKER_URL="redis://127.0.0.1:1/0",
        SEGNODE_COMPUTE_ARTIFACTS_DIR=str(site / "artifacts"),
        SEGNODE_COMPUTE_MODELS_DIR=str(site / "models"),
    )
    assert started.returncode == 1
    assert "Model lungs: there is no program absent on this machine" in started.stderr
    assert "Install what is missing on this machine" in started.stderr
    assert "Traceback" not in started.stderr
