"""deploy/segnode.service: systemd understands every line, and what it starts is there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
UNIT = REPOSITORY / "deploy" / "segnode.service"


def verified(text: str, folder: Path) -> str:
    """What systemd finds wrong with the unit, installed in this environment."""
    here = Path(sys.executable).parent
    installed = re.sub(r"/opt/segnode/\.venv/bin/(\w+)", rf'"{here}/\1"', text)
    unit = folder / UNIT.name
    unit.write_text(installed)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    return done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="a machine without systemd")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    """No unknown key and no missing command; both would be named."""
    text = UNIT.read_text()
    assert verified(text, tmp_path) == ""
    assert "OOMPolizy" in verified(text.replace("OOMPolicy", "OOMPolizy"), tmp_path)
    assert "segnot" in verified(text.replace("bin/segnode up", "bin/segnot up"), tmp_path)


def test_the_unit_follows_the_process_that_up_leaves() -> None:
    """Its PID file is where the supervisor of the same folder writes it."""
    lines = dict(line.split("=", 1) for line in UNIT.read_text().splitlines() if "=" in line)
    folder = lines["WorkingDirectory"]
    assert lines["PIDFile"] == f"{folder}/var/run/supervisord.pid"
    assert lines["Type"] == "forking"
    assert lines["ExecStart"] == f"{folder}/.venv/bin/segnode up"
