"""De-identify every file of some folders, judge each output with other people's software, count.

``python bench/deidentify_corpus.py [FOLDER ...]`` (default: pydicom's own test files, and
``../shared/data`` where it is present). Exit status 1 if any file was passed through unchanged,
crashed with an error that is not ours, or left as something that pydicom, dcmdump or dciodvfy
objects to.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import io
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pydicom

from anonymizer import PseudonymKeys, basic_policy, deidentify_instance
from anonymizer.errors import AnonymizerError
from anonymizer.part10 import read_instance

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
PYDICOM = Path(pydicom.__file__).parent / "data"
KEYS = PseudonymKeys.from_secret(bytes(range(32)))
# DCMTK's tools by path: pynetdicom installs scripts of the same names.
DCMDUMP = Path("/usr/bin/dcmdump")
DCIODVFY = shutil.which("dciodvfy")
READ_BY_PYDICOM = ", read by pydicom: not of the plain form"
BAD = ("crashed", "passed through", "output unreadable", "new dciodvfy error")


@dataclass(frozen=True)
class Outcome:
    """What became of one file."""

    path: Path
    kind: str
    """``de-identified``, ``refused`` or one of :data:`BAD`."""
    cause: str


def outcomes(folders: Iterable[Path], *, judge: bool = True) -> Iterator[Outcome]:
    """De-identify every distinct file under ``folders``; ``judge=False`` runs no other program."""
    seen: set[bytes] = set()
    for folder in folders:
        for path in sorted(file for file in folder.rglob("*") if file.is_file()):
            data = path.read_bytes()
            digest = hashlib.sha256(data).digest()
            if digest not in seen:
                seen.add(digest)
                yield _outcome(path, data, judge)


def _outcome(path: Path, data: bytes, judge: bool) -> Outcome:
    try:
        output = deidentify_instance(data, basic_policy(), KEYS).data
    except AnonymizerError as error:
        return Outcome(path, "refused", f"{type(error).__name__}: {error}")
    except Exception as error:  # noqa: BLE001 - the point of this command: nothing foreign may come out
        return Outcome(path, "crashed", type(error).__name__)
    if output == data:
        return Outcome(path, "passed through", "the output is the input")
    try:
        opened = pydicom.dcmread(io.BytesIO(output))
        list(opened.iterall())
    except Exception as error:  # noqa: BLE001 - pydicom raises what it likes
        return Outcome(path, "output unreadable", f"pydicom: {type(error).__name__}")
    if judge:
        with tempfile.TemporaryDirectory() as folder:
            before, after = Path(folder, "before.dcm"), Path(folder, "after.dcm")
            before.write_bytes(data)
            after.write_bytes(output)
            if DCMDUMP.exists() and not _dcmdump_reads(after):
                return Outcome(path, "output unreadable", "dcmdump")
            new = dciodvfy_errors(after) - dciodvfy_errors(before)
        if new:
            return Outcome(path, "new dciodvfy error", "; ".join(sorted(new)))
    plain = read_instance(data, pixels_required=False).places
    cause = str(opened.SOPClassUID.name) + ("" if plain else READ_BY_PYDICOM)
    return Outcome(path, "de-identified", cause)


def _dcmdump_reads(path: Path) -> bool:
    done = subprocess.run([DCMDUMP, "-q", path], capture_output=True, check=False, timeout=120)
    return done.returncode == 0


def dciodvfy_errors(path: Path) -> set[str]:
    """The errors that dicom3tools' validator reports, without the values that it quotes."""
    if DCIODVFY is None:
        return set()
    done = subprocess.run([DCIODVFY, path], capture_output=True, check=False, timeout=120)
    text = (done.stdout + done.stderr).decode("latin-1")
    lines = [line for line in text.splitlines() if line.startswith("Error")]
    return {re.sub(r"<[^>]*>|\[[^\]]*\]|= '[^']*'|\(0x[^)]*\)|[\d.]+", "", line) for line in lines}


def main(arguments: list[str] | None = None) -> int:
    """Print what became of how many files."""
    parser = argparse.ArgumentParser(description="De-identify a corpus and judge every output.")
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    folders = parser.parse_args(arguments).folders or [
        folder for folder in (PYDICOM, SHARED) if folder.is_dir()
    ]
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    for outcome in outcomes(folders):
        counts[outcome.kind, outcome.cause] += 1
        if outcome.kind in BAD:
            print(f"{outcome.kind}: {outcome.path.name}: {outcome.cause}", file=sys.stderr)
    totals: collections.Counter[str] = collections.Counter()
    for (kind, cause), count in sorted(counts.items(), key=lambda item: (item[0][0], -item[1])):
        totals[kind] += count
        print(f"{count:5}  {kind:20} {cause}")
    slow = sum(count for (_, cause), count in counts.items() if cause.endswith(READ_BY_PYDICOM))
    print(
        ", ".join(f"{count} {kind}" for kind, count in totals.items()),
        f"{slow} read by pydicom",
        sep="; ",
    )
    return 1 if any(totals[kind] for kind in BAD) else 0


if __name__ == "__main__":
    sys.exit(main())
