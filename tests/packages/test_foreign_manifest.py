"""What is wrong with a program is found before a patient waits."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from node.errors import ModelFault
from node.foreign.check import sha256_of
from node.manifest import CommandManifest, read_manifest
from tests.packages.foreign_models import OWN, READS_DICOM, READS_NIFTI, load, write_model


def test_an_altered_program_is_not_run(tmp_path: Path) -> None:
    """The manifest, and with it the digest of every job, vouches for the program."""
    folder = write_model(tmp_path / "lungs", READS_DICOM)
    load(folder)
    with (folder / "lungs_of_dicom.py").open("a") as file:
        file.write("# changed\n")
    with pytest.raises(ModelFault, match=r"SHA-256 of \{model\}/lungs_of_dicom.py is not"):
        load(folder)


def test_everything_that_is_missing_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person installs once, not three times."""
    command = {**OWN, "run": ["no-such-program", "{input}", "{output}"], "readable": ["/no/where"]}
    folder = write_model(tmp_path / "own", command)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ModelFault) as failure:
        load(folder)
    for phrase in ("no program no-such-program", "bwrap", "/no/where is not there"):
        assert phrase in str(failure.value)


def test_the_hash_of_a_folder_is_that_of_its_listing(tmp_path: Path) -> None:
    """Anybody can make it with sha256sum; a moved or renamed file changes it."""
    folder = tmp_path / "weights"
    (folder / "fold_0").mkdir(parents=True)
    (folder / "fold_0" / "a b.pth").write_bytes(b"1")
    (folder / "Plans.json").write_bytes(b"{}")
    by_shell = os.popen(  # noqa: S605
        f"cd '{folder}' && find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum "
        "| sha256sum"
    ).read()
    assert sha256_of(folder) == by_shell.split()[0]
    shutil.move(folder / "Plans.json", folder / "fold_0" / "Plans.json")
    assert sha256_of(folder) != by_shell.split()[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"run": ["prog", "{input}"]}, r"no argument holds \{output\}"),
        ({"run": ["prog", "{input}", "{output}", "{gpu}"]}, r"no placeholder \{gpu\}"),
        ({"labels": {"1": 1}}, "no value means segment 2"),
        ({"labels": {"1": 1, "2": 2, "3": 3}}, "no segment is numbered 3"),
        ({"environment": {"SEGNODE_CONFIG": "x"}}, "SEGNODE_CONFIG"),
        ({"pass_environment": ["A B"]}, "pass_environment"),
        ({"output": "../*.nii.gz"}, "output: a pattern below"),
        ({"output": "/etc/passwd"}, "output: a pattern below"),
        ({"reads": "png"}, "command.reads"),
        ({"time_limit_s": 0}, "time_limit_s"),
        ({"input_name": "../series.nii"}, "input_name"),
        ({"shell": True}, "command.shell: Extra"),
    ],
)
def test_a_wrong_command_is_told_with_its_field(
    tmp_path: Path, change: Mapping[str, Any], message: str
) -> None:
    """As with every field of a manifest, the start stops and names it."""
    folder = write_model(tmp_path / "own", {**READS_NIFTI, **change})
    with pytest.raises(ModelFault, match=message):
        read_manifest(folder)


def test_a_program_without_a_hash_is_no_model(tmp_path: Path) -> None:
    """What lies in the model's folder is part of the model."""
    folder = write_model(tmp_path / "lungs", READS_DICOM)
    text = (folder / "model.toml").read_text()
    start = text.index("files = ")
    (folder / "model.toml").write_text(text[:start] + text[text.index("\n", start) :])
    with pytest.raises(ModelFault, match=r"SHA-256 of .*lungs_of_dicom\.py is missing"):
        read_manifest(folder)


def test_another_command_line_is_another_model(tmp_path: Path) -> None:
    """The digest, part of a job's key, follows every word of the manifest."""
    one = read_manifest(write_model(tmp_path / "a" / "lungs", READS_NIFTI))
    same = read_manifest(write_model(tmp_path / "b" / "lungs", READS_NIFTI))
    other = read_manifest(
        write_model(tmp_path / "c" / "lungs", {**READS_NIFTI, "other_grid": "resample"})
    )
    assert isinstance(one, CommandManifest)
    assert one.digest == same.digest != other.digest
