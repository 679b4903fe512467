"""``python -m anonymizer IN OUT`` as a user runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pydicom

from anonymizer import Crosswalk, FolderRecords, Keyring, Vault, read_key_file
from tests.identified_ct import (
    PATIENT_ID,
    SECRETS,
    SERIES,
    ct_bytes,
    ct_with_planted_identity,
)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "anonymizer", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )


def folder_of(path: Path, **instances: bytes) -> Path:
    """A folder with these files in it."""
    (path / "Featherstone").mkdir(parents=True)
    for name, data in instances.items():
        (path / "Featherstone" / name).write_bytes(data)
    return path


def test_folder_in_folder_out_with_a_way_back(tmp_path: Path) -> None:
    """Outputs carry pseudonymous names, the vault opens with its key, nothing else leaks."""
    source = folder_of(tmp_path / "in", a=ct_with_planted_identity(1), b=ct_bytes(2))
    out, vault = tmp_path / "out", tmp_path / "vault"
    result = run(source, out, "--key", tmp_path / "p.key", "--vault", vault)
    assert result.returncode == 0, result.stderr
    written = [path for path in out.rglob("*") if path.is_file()]
    assert len(written) == 2
    for path in written:
        ds = pydicom.dcmread(path)
        assert path.name == f"{ds.SOPInstanceUID}.dcm"
        assert path.parent.name == ds.SeriesInstanceUID
    everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()
                          and source not in path.parents)  # fmt: skip
    names = " ".join(str(path.relative_to(tmp_path)) for path in (*written, *vault.rglob("*")))
    for secret in SECRETS:
        assert secret not in result.stdout + result.stderr + names
        assert secret.encode() not in everything
    keyring = Keyring("file", {"file": read_key_file(tmp_path / "vault.key")})
    opened = Vault(FolderRecords(vault), keyring)
    study, series = written[0].parent.parent.name, written[0].parent.name
    crosswalk = Crosswalk.from_bytes(opened.open(study, f"crosswalk-{series}"))
    assert crosswalk.series_instance_uid == SERIES
    assert PATIENT_ID.encode() in crosswalk.header


def test_same_key_gives_the_same_pseudonyms_and_no_key_others(tmp_path: Path) -> None:
    """A later run with the key continues; without one nothing links to it."""
    source = folder_of(tmp_path / "in", a=ct_bytes())
    for name, *key in (("one", "--key", tmp_path / "k"), ("two", "--key", tmp_path / "k"),
                       ("none",)):  # fmt: skip
        assert run(source, tmp_path / name, *key).returncode == 0
    names = [next((tmp_path / name).rglob("*.dcm")).name for name in ("one", "two", "none")]
    assert names[0] == names[1] != names[2]


def test_what_does_not_pass_is_counted_and_the_rest_goes_on(tmp_path: Path) -> None:
    """Status 1, causes in the table, no file for them."""
    source = folder_of(
        tmp_path / "in", a=b"not DICOM", b=ct_bytes(BurnedInAnnotation="YES"), c=ct_bytes()
    )
    result = run(source, tmp_path / "out")
    assert result.returncode == 1
    assert "Unreadable" in result.stdout
    assert "BurnedInText" in result.stdout
    assert len(list((tmp_path / "out").rglob("*.dcm"))) == 1


def test_wrong_recipe_stops_before_anything_is_read(tmp_path: Path) -> None:
    """Status 2, the line named, no output folder."""
    source = folder_of(tmp_path / "in", a=ct_bytes())
    recipe = tmp_path / "r.deid"
    recipe.write_text("FORMAT dicom\n%header\nREMOVE PatientNam\n")
    result = run(source, tmp_path / "out", "--recipe", recipe)
    assert result.returncode == 2
    assert "Line 3" in result.stderr
    assert not (tmp_path / "out").exists()
