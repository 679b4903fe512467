"""A day's load at three times its busiest hour: is memory flat, and what does each step take?

    bench/soak.py                       1,500 studies, 75 minutes; tables, JSON, two pictures
    bench/soak.py --studies 150         the same rate, for seven and a half minutes

A hospital with 1,500 studies a day is given 400 in its busiest hour (MONAI Deploy's workload
guideline), so three times that is a study every three seconds. Of ten studies five are small CT
(a phantom of 12 slices), three are chest radiographs, and two are MR that no rule wants; one in
ten is urgent. They are sent when their time has come, whether or not the node has kept up.
Exit status 1 tells that a study did not end as it must, or that a process has grown.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `tests` is no installed package

from node.edges.ledger import Ledger
from node.edges.orthanc_config import DicomPeer
from node.edges.supervisor import Supervisor
from node.jobs import State, StepName
from node.pipeline.outbound import outgoing
from tests.orthanc_server import REPOSITORY, OrthancServer
from tests.phantoms import ct_series
from tests.radiographs import projected_chest, radiograph
from tests.running_node import RunningNode, Study, descendants, made_up_study

#: Studies in the busiest hour of a hospital with 1,500 a day, and how much more is asked here.
PEAK_PER_HOUR, TIMES = 400, 3
#: Of ten studies, so many; and how the study must end.
MIX: Mapping[str, tuple[int, State]] = {
    "CT": (5, State.CONFIRMED),
    "CR": (3, State.CONFIRMED),
    "MR": (2, State.REJECTED),
}
SAMPLE_S = 2.0
#: A process may grow by so much from the second to the last fifth of the run.
GROWTH_MIB, GROWTH_SHARE = 30, 0.10
#: In a shorter run models are still being loaded: nothing is said of growth.
JUDGED_FROM = 100
QUIET_S = 1.0

_RULES = """
[[rules]]
name = "chest-radiograph"
model = "cxr_lungs"
destinations = ["hospital"]
when = [ { tag = "Modality", one_of = ["CR", "DX"] } ]
"""


@dataclass(frozen=True)
class Sample:
    """Memory of the node's processes at one time: name → MiB, the sum of those of one name."""

    at_s: float
    mib: Mapping[str, float]


class Memory(threading.Thread):
    """Resident memory of every process of the node, every two seconds."""

    def __init__(self, node: RunningNode) -> None:
        super().__init__(daemon=True)
        self._supervisor = Supervisor(node.var)
        self._since = time.time()
        self._ended = threading.Event()
        self.samples: list[Sample] = []

    def run(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            found: dict[str, float] = {}
            for process in self._supervisor.processes():
                found[process.name] = _resident_mib(process.pid)
                children = sum(_resident_mib(pid) for pid in descendants(process.pid))
                if children:
                    found[f"{process.name}, children"] = children
            self.samples.append(Sample(time.time() - self._since, found))

    def stop(self) -> None:
        """Take no more samples."""
        self._ended.set()
        self.join()


def _resident_mib(pid: int) -> float:
    """Memory of its own: what is shared with a parent is the parent's."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    kib = {line.split(":")[0]: int(line.split()[1]) for line in text.splitlines()[1:]}
    return (kib["Private_Clean"] + kib["Private_Dirty"]) / 1024


def _sources(folder: Path) -> dict[str, list[Path]]:
    ct = ct_series(slices=12, rows=160, columns=230, spacing_mm=(6, 1.5, 1.5))
    mr = ct_series(slices=12, rows=160, columns=230, spacing_mm=(6, 1.5, 1.5), Modality="MR")
    cr = radiograph(projected_chest(), BurnedInAnnotation="NO")
    found = {}
    for modality, instances in {"CT": ct, "CR": [cr], "MR": mr}.items():
        (folder / modality).mkdir(parents=True)
        found[modality] = [folder / modality / f"{n:02}.dcm" for n in range(len(instances))]
        for file, instance in zip(found[modality], instances, strict=True):
            instance.save_as(file, enforce_file_format=True)
    return found


def load(
    node: RunningNode, folder: Path, studies: int, per_hour: float, progress: Callable[[], None]
) -> tuple[list[tuple[str, Study]], float]:
    """Send everything at its time; what was sent, and by how many seconds the last was late."""
    sources = _sources(folder / "sources")
    rng = random.Random(1)  # noqa: S311 - the same studies in every run
    kinds = [kind for kind, (share, _) in MIX.items() for _ in range(share)]
    sent: list[tuple[str, Study]] = []
    late: list[float] = []
    started = time.monotonic()

    def send(number: int, study: Study) -> None:
        for _ in range(5):
            if node.receive(study, options=()).returncode == 0:
                break
        else:
            raise RuntimeError("a study was not acknowledged")
        late.append(time.monotonic() - started - number * 3600 / per_hour)
        for file in study.files:
            file.unlink()
        progress()

    with ThreadPoolExecutor(8) as senders:
        futures = []
        for number in range(studies):
            if number % len(kinds) == 0:
                rng.shuffle(kinds)
            kind = kinds[number % len(kinds)]
            urgent = {"StudyPriorityID": "HIGH"} if rng.random() < 0.1 else {}
            study = made_up_study(folder / f"{number:05}", sources[kind], **urgent)
            sent.append((kind, study))
            time.sleep(max(0.0, started + number * 3600 / per_hour - time.monotonic()))
            futures.append(senders.submit(send, number, study))
        for future in futures:
            future.result()
    return sent, max(late)


def latencies(ledger: Ledger, jobs: Sequence[Any]) -> dict[str, list[float]]:
    """Seconds by step, one for each try; ``all`` from the last instance's arrival to the end."""
    found: dict[str, list[float]] = {str(step): [] for step in StepName}
    found["all"] = []
    for job in jobs:
        for attempt in ledger.attempts(job.id):
            if attempt.ended_at is not None:
                found[str(attempt.step)].append(attempt.ended_at - attempt.started_at)
        if job.state is State.CONFIRMED:
            found["all"].append(job.updated_at - job.created_at + QUIET_S)
    return found


def grown(samples: Sequence[Sample]) -> dict[str, tuple[float, float]]:
    """Name → MiB in the second and in the last fifth of the run."""
    fifth = len(samples) // 5
    early, last = samples[fifth : 2 * fifth], samples[-fifth:]
    return {
        name: (
            median(one.mib.get(name, 0.0) for one in early),
            median(one.mib.get(name, 0.0) for one in last),
        )
        for name in sorted(samples[-1].mib)
    }


def has_grown(early: float, late: float) -> bool:
    """More than a process may."""
    return late - early > max(GROWTH_MIB, GROWTH_SHARE * early)


def draw_latencies(seconds: Mapping[str, Sequence[float]], file: Path) -> None:
    """The distribution of each step, from fast to slow."""
    figure, axes = plt.subplots(figsize=(8, 4.5))
    for name, values in seconds.items():
        ordered = sorted(max(value, 0.001) for value in values)
        shares = [100 * (number + 1) / len(ordered) for number in range(len(ordered))]
        width = 2.5 if name == "all" else 1.3
        axes.step(ordered, shares, where="post", label=name, linewidth=width)
    axes.set(xscale="log", xlabel="seconds", ylabel="share of tries that took at most so long, %")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8, loc="lower right")
    _save(figure, file)


def draw_memory(samples: Sequence[Sample], file: Path) -> None:
    """Memory of each process over time; its children in the same colour, dashed."""
    figure, axes = plt.subplots(figsize=(8, 4.5))
    names = sorted(name for name, mib in samples[-1].mib.items() if mib >= 1)  # no mere wrapper
    processes = sorted({name.split(",")[0] for name in names})
    for name in names:
        axes.plot(
            [one.at_s / 60 for one in samples],
            [one.mib.get(name, 0.0) for one in samples],
            label=name,
            color=f"C{processes.index(name.split(',')[0])}",
            linestyle="--" if "," in name else "-",
        )
    axes.set(xlabel="minutes", ylabel="memory of its own, MiB", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    _save(figure, file)


def _save(figure: Any, file: Path) -> None:
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


def tables(document: Mapping[str, Any]) -> list[Table]:
    """What was sent, what each step took, and memory."""
    steps = Table(box=box.SIMPLE, title="seconds", title_justify="left")
    for column in ("", "tries", "median", "95 %", "99 %", "longest"):
        steps.add_column(column, justify="right" if column else "left")
    for name, values in document["latency_s"].items():
        if len(values) > 1:
            cuts = quantiles(values, n=100, method="inclusive")
            shown = (median(values), cuts[94], cuts[98], max(values))
            steps.add_row(name, str(len(values)), *(f"{value:.2f}" for value in shown))
    memory = Table(box=box.SIMPLE, title="memory of its own, MiB", title_justify="left")
    for column in ("", "second fifth of the run", "last fifth"):
        memory.add_column(column, justify="right" if column else "left")
    for name, (early, late) in document["memory_mib"].items():
        colour = "[red]" if has_grown(early, late) else ""
        memory.add_row(name, f"{early:.0f}", f"{colour}{late:.0f}")
    return [steps, memory]


def run(arguments: argparse.Namespace, out: Console, folder: Path) -> dict[str, Any]:
    """Start a node and a PACS, send, wait, measure."""
    ports = RunningNode.free_ports()
    peer = DicomPeer("segnode", "SEGNODE", "127.0.0.1", ports["dicom"], may_query=True)
    bridge = REPOSITORY / "deploy" / "demo" / "no_bridge" / "bridge.py"
    with (
        OrthancServer(folder / "pacs", ae_title="HOSPITAL", peers=[peer], bridge=bridge) as pacs,
        RunningNode(folder / "node", pacs, ports, quiet_s=QUIET_S, more=_RULES) as node,
    ):
        memory = Memory(node)
        memory.start()
        with Progress(console=out) as progress:
            bar = progress.add_task("studies", total=arguments.studies)
            sent, late_s = load(
                node, folder, arguments.studies, arguments.per_hour, lambda: progress.advance(bar)
            )
        ledger = Ledger(f"sqlite:///{node.var / 'ledger.sqlite'}")
        jobs = _ended(ledger, len(sent))
        memory.stop()
        states: dict[str, int] = {}
        for job in jobs:
            states[str(job.state)] = states.get(str(job.state), 0) + 1
        wrong = _wrong(node, jobs, sent)
        seconds = latencies(ledger, jobs)
        results = len(pacs.get("/instances").json())
        expected = sum(len(outgoing(job)) for job in jobs if job.state is State.CONFIRMED)
        if results != expected:
            wrong.append(f"the PACS holds {results} objects, {expected} were made")
    return {
        "studies": len(sent), "per_hour": arguments.per_hour, "last_sent_late_s": round(late_s, 2),
        "states": states, "wrong": wrong, "objects_in_pacs": results,
        "latency_s": {name: [round(value, 3) for value in found]
                      for name, found in seconds.items()},
        "memory_mib": grown(memory.samples),
        "memory_samples": [[round(one.at_s, 1), dict(one.mib)] for one in memory.samples],
    }  # fmt: skip


def _ended(ledger: Ledger, studies: int, bound_s: float = 600) -> list[Any]:
    deadline = time.monotonic() + bound_s
    while time.monotonic() < deadline:
        counts = ledger.counts()
        waiting = sum(
            counts.get(state, 0) for state in (State.QUEUED, State.RUNNING, State.WAITING)
        )
        if sum(counts.values()) >= studies and not waiting:
            break
        time.sleep(1)
    return ledger.jobs(limit=10 * studies)


def _wrong(node: RunningNode, jobs: Sequence[Any], sent: Sequence[tuple[str, Study]]) -> list[str]:
    by_series = {job.series_id: job for job in jobs if job.state is not State.SUPERSEDED}
    wrong = []
    for kind, study in sent:
        job = by_series.get(node.series_id(study))
        state = job.state if job else "lost"
        if state != MIX[kind][1]:
            wrong.append(f"{kind}: {state} {job.cause if job else ''}")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--studies", type=int, default=1500)
    parser.add_argument("--per-hour", type=float, default=PEAK_PER_HOUR * TIMES)
    parser.add_argument("--json", type=Path, default=REPOSITORY / "var" / "bench_soak.json")
    parser.add_argument("--pictures", type=Path, default=REPOSITORY / "var")
    arguments = parser.parse_args()
    out = Console()
    started = time.time()
    with tempfile.TemporaryDirectory(prefix="segnode-soak-", ignore_cleanup_errors=True) as name:
        document = run(arguments, out, Path(name))
    document["date"] = time.strftime("%Y-%m-%d", time.gmtime(started))
    document["machine"] = f"{os.cpu_count()} cores, {platform.platform()}"
    samples = [Sample(at_s, mib) for at_s, mib in document["memory_samples"]]
    draw_latencies(document["latency_s"], arguments.pictures / "soak-latency.svg")
    draw_memory(samples, arguments.pictures / "soak-memory.svg")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    for table in tables(document):
        out.print(table)
    out.print(
        f"{document['studies']} studies, one every {3600 / arguments.per_hour:.1f} s: "
        + ", ".join(f"{count} {state}" for state, count in document["states"].items())
    )
    for problem in document["wrong"]:
        out.print(f"[red]wrong:[/red] {problem}", highlight=False)
    out.print(f"Written to {arguments.json} and {arguments.pictures}/soak-*.svg")
    judged = arguments.studies >= JUDGED_FROM
    heavier = [n for n, both in document["memory_mib"].items() if judged and has_grown(*both)]
    sys.exit(1 if document["wrong"] or heavier else 0)


if __name__ == "__main__":
    main()
