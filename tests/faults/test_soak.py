"""A short soak: the load of ``bench/soak.py``, for as long as a test may take."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.orthanc_server import REPOSITORY, require_orthanc


def test_a_short_soak_ends_every_study_as_it_must_and_draws_it(tmp_path: Path) -> None:
    """Ten CT and six radiographs confirmed, four MR refused; each step is timed and drawn."""
    require_orthanc()
    done = subprocess.run(
        [
            sys.executable, "bench/soak.py", "--studies", "20", "--per-hour", "3600",
            "--json", str(tmp_path / "soak.json"), "--pictures", str(tmp_path),
        ],
        cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads((tmp_path / "soak.json").read_text())
    assert document["states"] == {"confirmed": 16, "rejected": 4}
    assert document["objects_in_pacs"] == 16
    assert len(document["latency_s"]["all"]) == 16
    assert {"orthanc", "worker", "compute", "watch"} <= set(document["memory_mib"])
    for picture in ("soak-latency.svg", "soak-memory.svg"):
        assert "</svg>" in (tmp_path / picture).read_text()
