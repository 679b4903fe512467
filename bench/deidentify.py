"""De-identifiers side by side: instances per CPU second, peak memory, and what they leak.

    bench/deidentify.py                          200 CT, three rounds, as a table
    bench/deidentify.py --slices 50 --rounds 1 --json FILE

All run in turn over the same made-up CT series (:mod:`bench.planted_ct`), files in memory, each in
a process of its own. CPU time is what is compared, because it holds on a busy machine; the median
of the rounds, and of several passes in each for what is over in a moment. The peers are installed
into environments below var/bench-peers; one that cannot be is reported as absent. Orthanc's time is
that of its process during one anonymize job, from store to store. Exit status 0 if ours is as fast
as it must be and leaks nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))  # `bench` and `tests` are no installed packages

from rich import box
from rich.console import Console
from rich.table import Table

from bench.planted_ct import DATES, NAME, ROOT, write_planted_ct
from tests.orthanc_server import OrthancServer

REQUIREMENTS = REPOSITORY / "bench" / "requirements-peers.txt"
ENVIRONMENTS = REPOSITORY / "var" / "bench-peers"
#: Which environment a peer lives in: idiscore needs a pydicom that the others are past.
PEERS = {"deid": "a", "dicognito": "a", "dicom-anonymizer": "a", "idiscore": "b"}
OWN, COPY, ORTHANC = "segnode", "file copy", "Orthanc"
OWN_RUNS = (COPY, OWN, "segnode, no series memory")
#: How often these run in each round, in turn: they are over in a moment, and moments differ.
OWN_PASSES = 5
#: How many times faster than each ours must be, at least.
LIMITS = {"deid": 50.0, ORTHANC: 8.0, COPY: 0.5}


@dataclass
class Result:
    """What one tool did, over all rounds."""

    tool: str
    cpu_s: list[float] = field(default_factory=list)
    peak_mb: float = 0.0
    instances: int = 0
    written: int = 0
    leaks: dict[str, int] = field(default_factory=dict)
    """Planted places of each class that still hold what was planted, in any instance."""
    dates: int = 0
    """Original dates still in the output."""
    uids: bool = False
    """Whether an original UID is still in the output."""
    failure: str = ""

    @property
    def rate(self) -> float:
        """Instances per CPU second, the median of the rounds."""
        return self.instances / median(self.cpu_s) if self.cpu_s else 0.0


def interpreter_for(tool: str, console: Console) -> Path:
    """The Python that has ``tool``; its environment is made if need be.

    Raises
    ------
    subprocess.CalledProcessError
        pip could not install it.
    """
    if tool not in PEERS:
        return Path(sys.executable)
    folder = ENVIRONMENTS / PEERS[tool]
    python = folder / "bin" / "python"
    wanted = [
        line
        for line in REQUIREMENTS.read_text("utf-8").splitlines()
        if PEERS.get(line.split("==")[0]) == PEERS[tool]
    ]
    installed = folder / "installed.txt"
    if not installed.exists() or installed.read_text("utf-8").splitlines() != wanted:
        console.print(f"installing {', '.join(wanted)}")
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "-qq", *wanted], check=True)
        installed.write_text("\n".join(wanted), "utf-8")
    return python


def run_tool(tool: str, python: Path, folder: Path) -> dict[str, float]:
    """One round of one tool in its own process."""
    shutil.rmtree(folder / tool, ignore_errors=True)
    done = subprocess.run(
        [
            str(python),
            str(REPOSITORY / "bench" / "deidentifiers.py"),
            tool,
            str(folder / "in"),
            str(folder / tool),
        ],
        env={**os.environ, "BENCH_RECIPE": str(folder / "table.deid")},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_orthanc(folder: Path) -> dict[str, float]:
    """One round of Orthanc's ``/anonymize``: its CPU time during the job, and its peak memory."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        overrides = {"OverwriteInstances": True}
        with OrthancServer(Path(place) / "orthanc", config_overrides=overrides) as orthanc:
            files = sorted((folder / "in").glob("*.dcm"))
            instances = [orthanc.upload(file) for file in files]
            series = orthanc.get(f"/instances/{instances[0]}/series").json()["ID"]
            before = _cpu_s(orthanc.pid)
            made = orthanc.post(f"/series/{series}/anonymize", json={"Synchronous": True}).json()
            cpu_s = _cpu_s(orthanc.pid) - before
            peak_mb = _peak_mb(orthanc.pid)
            target = folder / ORTHANC
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir()
            for instance in orthanc.get(f"/series/{made['ID']}").json()["Instances"]:
                data = orthanc.get(f"/instances/{instance}/file").content
                (target / f"{instance}.dcm").write_bytes(data)
    return {"cpu_s": cpu_s, "peak_mb": peak_mb, "instances": len(files)}


def _processes(group: int) -> list[Path]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[2]) == group:
                found.append(stat.parent)
        except (OSError, ValueError):
            continue
    return found


def _cpu_s(group: int) -> float:
    """User and system time of a process group so far (proc(5), fields 14 and 15)."""
    ticks = 0
    for process in _processes(group):
        fields = (process / "stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _peak_mb(group: int) -> float:
    peaks = [re.search(r"VmHWM:\s+(\d+)", (p / "status").read_text()) for p in _processes(group)]
    return max(int(peak[1]) for peak in peaks if peak) / 1024


def search_output(result: Result, folder: Path, planted: Mapping[str, list[str]]) -> None:
    """Count what the output of a tool still holds, anywhere in its bytes."""
    marks, dates = set(), set()
    result.uids, result.written = False, 0
    for file in folder.glob("*.dcm"):
        data = file.read_bytes().lower()
        result.written += 1
        marks.update(re.findall(rb"%b \d{3}" % NAME.lower().encode(), data))
        dates.update(date for date in DATES if date.encode() in data)
        result.uids |= f"{ROOT}.".encode() in data
    result.dates = len(dates)
    result.leaks = {
        kind: sum(text.lower().encode() in marks for text in texts)
        for kind, texts in planted.items()
    }


def table_of(results: Mapping[str, Result], planted: Mapping[str, list[str]]) -> Table:
    """Tools as rows, slowest last."""
    table = Table(title="De-identification of one CT series", box=box.SIMPLE)
    table.add_column("tool")
    for name in (
        "inst / CPU s",
        "range",
        "peak MB",
        "ours is",
        *planted,
        "all 86",
        "dates",
        "UID",
    ):
        table.add_column(name, justify="right", overflow="fold")
    own = results[OWN].rate
    for result in sorted(results.values(), key=lambda result: -result.rate):
        if result.failure:
            table.add_row(result.tool, f"not run: {result.failure}")
            continue
        rates = sorted(result.instances / cpu for cpu in result.cpu_s)
        table.add_row(
            result.tool,
            f"{result.rate:,.0f}",
            f"{rates[0]:,.0f}-{rates[-1]:,.0f}",
            f"{result.peak_mb:.0f}",
            f"{own / result.rate:.1f}x",
            *(str(count) for count in result.leaks.values()),
            str(sum(result.leaks.values())),
            str(result.dates),
            "yes" if result.uids else "no",
        )
    return table


def verdicts(results: Mapping[str, Result]) -> dict[str, bool]:
    """What must hold of ours, and whether it does."""
    own = results[OWN]
    found = {
        f"at least {limit:g} times {tool}": own.rate >= limit * results[tool].rate
        for tool, limit in LIMITS.items()
        if not results[tool].failure
    }
    clean = not sum(own.leaks.values()) and not own.dates and not own.uids
    found["nothing leaks"] = clean and own.written == own.instances
    return found


def main() -> int:
    """Exit status 0 if everything that must hold holds."""
    options = _parser().parse_args()
    console = Console(stderr=True)
    results = {tool: Result(tool) for tool in (*OWN_RUNS, *PEERS, ORTHANC)}
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench-deidentify-") as place:
        folder = Path(place)
        planted = write_planted_ct(folder / "in", options.slices)
        runs: dict[str, Callable[[], dict[str, float]]] = {}
        for tool in (*OWN_RUNS, *PEERS):
            try:
                python = interpreter_for(tool, console)
            except (subprocess.CalledProcessError, OSError) as error:
                results[tool].failure = f"not installed ({type(error).__name__})"
                continue
            runs[tool] = partial(run_tool, tool, python, folder)
        runs[ORTHANC] = partial(run_orthanc, folder)
        for number in range(1, options.rounds + 1):
            console.print(f"round {number}")
            for tool in (*OWN_RUNS * OWN_PASSES, *PEERS, ORTHANC):
                result = results[tool]
                if result.failure:
                    continue
                try:
                    found = runs[tool]()
                except (RuntimeError, OSError, KeyError) as error:
                    result.failure = str(error)[:200]
                    continue
                result.cpu_s.append(found["cpu_s"])
                result.peak_mb = max(result.peak_mb, found["peak_mb"])
                result.instances = int(found["instances"])
                if number == options.rounds:
                    search_output(result, folder / tool, planted)
    Console(width=200).print(table_of(results, planted))
    found_verdicts = verdicts(results)
    for what, holds in found_verdicts.items():
        print("yes" if holds else "NO ", what)
    if options.json:
        content = {
            "slices": options.slices,
            "tools": [{**asdict(one), "instances_per_cpu_s": one.rate} for one in results.values()],
            "verdicts": found_verdicts,
        }
        options.json.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    return 0 if all(found_verdicts.values()) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--slices", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here, too")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("/dev/shm") if Path("/dev/shm").is_dir() else None,  # noqa: S108
        help="where the files lie (default: in memory)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
