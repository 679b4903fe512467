"""Model folders whose model is a program of ``foreign_program/``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from node.foreign.check import sha256_of
from node.foreign.model import CommandModel, load_command_model
from node.manifest import CommandManifest, read_manifest

PROGRAMS = Path(__file__).parent / "foreign_program"

SEGMENT = """
[[segments]]
number = {number}
label = "{label}"
category = {{ value = "91723000", scheme = "SCT", meaning = "Anatomical Structure" }}
type = {{ value = "{code}", scheme = "SCT", meaning = "{label}" }}
rgb = [86, 180, 233]
"""
MANIFEST = """
name = "{name}"
version = "1.0.0"
description = "Lungs by threshold"
licence = "Apache-2.0"
training_data = "None"
intended_use = "Tests"
window_hu = [-1000, 400]

[input]
modality = "CT"
orientation = "any"
min_slices = 2
min_extent_mm = 5.0
slice_spacing_mm = [0.4, 10.0]
pixel_spacing_mm = [0.3, 6.0]
wanted = "Send a CT of the chest."

[results]
series_number = 9002
series_description = "Lungs by threshold"

[command]
"""

READS_DICOM: Mapping[str, Any] = {
    "run": ["{python}", "{model}/lungs_of_dicom.py", "{input}", "{output}"],
    "reads": "dicom",
    "writes": "nifti",
    "output": "lungs.nii.gz",
    "labels": {"10": 1, "20": 2},
    "time_limit_s": 120,
}
READS_DICOM_WRITES_SEG: Mapping[str, Any] = {
    **READS_DICOM,
    "run": ["{python}", "{model}/lungs_of_dicom.py", "--seg", "{input}", "{output}"],
    "writes": "dicom-seg",
    "output": "*.dcm",
    "labels": {"1": 1, "2": 2},
}
READS_NIFTI: Mapping[str, Any] = {
    "run": ["{python}", "{model}/lungs_of_nifti.py", "{input}/ct.nii.gz", "{output}/lungs.nii"],
    "reads": "nifti",
    "input_name": "ct.nii.gz",
    "writes": "nifti",
    "output": "*.nii",
    "labels": {"1": 1, "2": 2},
    "time_limit_s": 120,
}

#: A program of the test's own, ``program.py``; it may do what it likes.
OWN: Mapping[str, Any] = {
    "run": ["{python}", "{model}/program.py", "{input}", "{output}"],
    "reads": "nifti",
    "writes": "nifti",
    "output": "labels.nii.gz",
    "labels": {"1": 1, "2": 2},
    "time_limit_s": 120,
}


def write_model(folder: Path, command: Mapping[str, Any], program: str | None = None) -> Path:
    """A model folder; ``program`` is the text of a Python program ``program.py`` in it."""
    folder.mkdir(parents=True)
    for path in PROGRAMS.glob("*.py"):
        shutil.copy(path, folder)
    if program is not None:
        (folder / "program.py").write_text(program)
    files = {
        argument: sha256_of(folder / argument.removeprefix("{model}/"))
        for argument in command["run"]
        if argument.startswith("{model}/")
    }
    text = MANIFEST.format(name=folder.name)
    text += "".join(f"{key} = {_toml(value)}\n" for key, value in command.items())
    text += f"files = {_toml(files)}\n"
    text += SEGMENT.format(number=1, label="Left lung", code="44029006")
    text += SEGMENT.format(number=2, label="Right lung", code="3341006")
    (folder / "model.toml").write_text(text)
    return folder


def load(folder: Path) -> CommandModel:
    """The model of a folder, checked."""
    manifest = read_manifest(folder)
    assert isinstance(manifest, CommandManifest)
    return load_command_model(folder, manifest, threads=1)


def _toml(value: Any) -> str:
    """A value of JSON as one of TOML; they differ in tables only."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + " }"
    return json.dumps(value)
