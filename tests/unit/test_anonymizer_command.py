"""``python -m anonymizer IN OUT`` as a user runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pydicom
import pytest

from anonymizer import Crosswalk, FolderRecords, Keyring, Vault, read_key_file
from tests.identified_ct import (
    PATIENT_ID,
    SECRETS,
    SERIES,
    ct_bytes,
    ct_instance,
    ct_with_planted_identity,
    part10,
)
from tests.slice_series import slice_of_series

HEAD_CT = Path(__file__).parents[3] / "shared" / "data" / "head_ct_mr_sr_adit_1005"
REASONS = ("BurnedInText", "ResidualIdentifier", "Unreadable", "Unsupported", "Rejected")


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "anonymizer", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )


def rows_of(table: str) -> list[list[str]]:
    """The rows of the printed table: outcome, how or why not, files."""
    lines = [line for line in table.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


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


def test_two_series_in_one_folder_stay_two(tmp_path: Path) -> None:
    """Slices of two series that lie mixed: two folders, most made from what others had taught."""
    slices = {
        f"{number:02d}": part10(slice_of_series(number, SeriesInstanceUID=f"{SERIES}.{number % 2}"))
        for number in range(1, 21)
    }
    source = folder_of(tmp_path / "in", **slices)
    vault = tmp_path / "vault"
    result = run(source, tmp_path / "out", "--vault", vault)
    assert result.returncode == 0, result.stderr
    folders = {path.parent for path in (tmp_path / "out").rglob("*.dcm")}
    assert sorted(len(list(folder.iterdir())) for folder in folders) == [10, 10]
    assert len({folder.parent for folder in folders}) == 1, "one study"
    fast = [int(count) for _, way, count in rows_of(result.stdout) if way.startswith("fast")]
    assert sum(fast) >= 10
    keyring = Keyring("file", {"file": read_key_file(tmp_path / "vault.key")})
    opened = Vault(FolderRecords(vault), keyring)
    for folder in folders:
        sealed = opened.open(folder.parent.name, f"crosswalk-{folder.name}")
        assert len(Crosswalk.from_bytes(sealed).instances) == 10


def test_series_comes_out_as_each_instance_alone(tmp_path: Path) -> None:
    """The command's memory changes no byte: folders of one instance each give the same files."""
    key = tmp_path / "key"
    slices = {f"{number:02d}": part10(slice_of_series(number)) for number in range(1, 5)}
    assert (
        run(folder_of(tmp_path / "all", **slices), tmp_path / "out", "--key", key).returncode == 0
    )
    together = {path.name: path.read_bytes() for path in (tmp_path / "out").rglob("*.dcm")}
    assert len(together) == 4
    for name, data in slices.items():
        source, out = folder_of(tmp_path / f"in{name}", one=data), tmp_path / f"out{name}"
        assert run(source, out, "--key", key).returncode == 0
        (alone,) = out.rglob("*.dcm")
        assert together[alone.name] == alone.read_bytes()


def test_copies_are_written_once_and_another_of_the_same_uid_is_refused(tmp_path: Path) -> None:
    """Two files of one instance are one; two instances of one UID are an error."""
    other = ct_instance(1)
    other.KVP = "140"
    source = folder_of(tmp_path / "in", a=ct_bytes(1), b=ct_bytes(1), c=part10(other))
    result = run(source, tmp_path / "out")
    assert result.returncode == 1
    assert "copy" in result.stdout
    assert "SOP Instance UID" in result.stdout
    (written,) = (tmp_path / "out").rglob("*.dcm")
    assert pydicom.dcmread(written).KVP == 120


@pytest.mark.parametrize("name", ["missing", "empty", "same", "inside"])
def test_folders_that_cannot_be_meant_are_refused(tmp_path: Path, name: str) -> None:
    """Status 2 and a reason; nothing is written."""
    source = tmp_path / "in"
    if name != "missing":
        source.mkdir()
    if name in ("same", "inside"):
        (source / "a").write_bytes(ct_bytes())
    out = {"same": source, "inside": source / "out"}.get(name, tmp_path / "out")
    result = run(source, out)
    assert result.returncode == 2
    assert "IN" in result.stderr
    assert not list(tmp_path.rglob("*.dcm"))


@pytest.mark.skipif(not HEAD_CT.is_dir(), reason="needs ../shared/data")
def test_real_files_of_several_kinds(tmp_path: Path) -> None:
    """A study of CT, MR and SR from a scanner: all are counted, and what is written opens."""
    result = run(HEAD_CT, tmp_path / "out")
    files = [path for path in HEAD_CT.rglob("*") if path.is_file()]
    written = list((tmp_path / "out").rglob("*.dcm"))
    assert written
    assert result.returncode == (0 if len(written) == len(files) else 1)
    for path in written:
        assert pydicom.dcmread(path).PatientIdentityRemoved == "YES"
    rows = rows_of(result.stdout)
    passed = sum(int(count) for kind, _, count in rows if kind == "de-identified")
    assert passed == len(written)
    assert ["written", "7 series", str(len(written))] in rows
    refused = [(kind, count) for kind, _, count in rows if count and kind in REASONS]
    assert sum(int(count) for _, count in refused) == len(files) - len(written)
    assert {"BurnedInText", "Unreadable"} <= dict(refused).keys()
    assert result.stdout.splitlines()[-1].split()[0] == "profile"
    assert len(result.stdout.splitlines()[-1].split()[1]) == 64
