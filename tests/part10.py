"""Instances as files, and what dicom3tools says of them."""

from __future__ import annotations

import subprocess
from io import BytesIO
from pathlib import Path

from pydicom.dataset import Dataset


def part10(instance: Dataset) -> bytes:
    """The instance as a file in memory."""
    stream = BytesIO()
    instance.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def errors_of(path: Path) -> set[str]:
    """What dciodvfy calls an error."""
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, check=False, timeout=60)
    said = (done.stdout + done.stderr).decode("latin-1").splitlines()
    return {line for line in said if line.startswith("Error")}
