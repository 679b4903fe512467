"""Seconds from the last C-STORE acknowledgement to the SEG in the PACS, by step.

    make bench                              the demo CT, three times, as a table
    bench/end_to_end.py --runs 5 --json FILE

A node and a stand-in PACS are started on ports of their own; DCMTK's storescu sends. Each run is a
new study. The quiet timer is what the site chose, and inference is the model's: both are shown and
neither counts towards what the node itself may take.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from rich import box
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `tests` is no installed package

from node.edges.ledger import Ledger
from node.edges.orthanc_config import DicomPeer
from node.jobs import StepName
from tests.orthanc_server import REPOSITORY, OrthancServer
from tests.running_node import DEMO_CT, RunningNode, made_up_study

QUIET_S = 1.0
#: What everything but the quiet timer and inference may take for the demo CT, in seconds.
LIMIT_S = 5.0
#: What a node that wastes nothing takes on two cores for 300 slices, in seconds, by step.
BUDGET_300_SLICES_S = {
    "route": 0.2,
    "deidentify": 0.6,
    "infer": 10.0,
    "encode": 0.8,
    "reidentify": 0.2,
    "deliver": 0.3,
    "confirm": 0.3,
    "between steps": 0.1,
}


def measured(node: RunningNode, folder: Path) -> dict[str, float]:
    """One study through the node: seconds by step, and the total."""
    study = made_up_study(folder, DEMO_CT)
    node.receive(study)
    acknowledged = time.time()
    job = node.wait_for(study)
    if job["state"] != "confirmed":
        raise SystemExit(f"the job is {job['state']}: {job['cause']}")
    attempts = Ledger(f"sqlite:///{node.var / 'ledger.sqlite'}").attempts(job["id"])
    seconds = {str(step): 0.0 for step in StepName}
    for attempt in attempts:
        assert attempt.ended_at is not None
        seconds[str(attempt.step)] += attempt.ended_at - attempt.started_at
    first, last = attempts[0].started_at, attempts[-1].ended_at
    assert last is not None
    seconds["quiet timer"] = first - acknowledged
    seconds["between steps"] = (last - first) - sum(seconds[str(step)] for step in StepName)
    seconds["all"] = last - acknowledged
    seconds["all but quiet timer and infer"] = (
        seconds["all"] - seconds["quiet timer"] - seconds["infer"]
    )
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path, default=REPOSITORY / "var" / "bench_end_to_end.json")
    arguments = parser.parse_args()
    out = Console()
    runs = []
    with tempfile.TemporaryDirectory(prefix="segnode-bench-") as name:
        folder = Path(name)
        ports = RunningNode.free_ports()
        peer = DicomPeer("segnode", "SEGNODE", "127.0.0.1", ports["dicom"], may_query=True)
        no_bridge = REPOSITORY / "deploy" / "demo" / "no_bridge" / "bridge.py"
        with (
            out.status("starting a node and a PACS ..."),
            OrthancServer(
                folder / "pacs", ae_title="HOSPITAL", peers=[peer], bridge=no_bridge
            ) as pacs,
            RunningNode(folder / "node", pacs, ports, quiet_s=QUIET_S) as node,
        ):
            measured(node, folder / "warm-up")  # the model is loaded at its first job
            for number in range(arguments.runs):
                runs.append(measured(node, folder / f"ct-{number}"))
    table = Table(
        box=box.SIMPLE,
        title=f"{len(DEMO_CT)} slices of 512x512, seconds, {len(runs)} runs",
        title_justify="left",
    )
    for column in ("", "fastest", "median", "slowest", "budget, 300 slices"):
        table.add_column(column, justify="left" if not column else "right")
    for key in runs[0]:
        values = [run[key] for run in runs]
        budget = BUDGET_300_SLICES_S.get(key)
        table.add_row(
            key,
            *(f"{value:.2f}" for value in (min(values), median(values), max(values))),
            f"{budget:.1f}" if budget else "",
            end_section=key in ("confirm", "between steps"),
        )
    own = median(run["all but quiet timer and infer"] for run in runs)
    out.print(table)
    out.print(f"The node itself: {own:.2f} s of at most {LIMIT_S:.0f} s")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(
        json.dumps({"slices": len(DEMO_CT), "limit_s": LIMIT_S, "runs": runs}, indent=2) + "\n"
    )
    out.print(f"Written to {arguments.json}")
    sys.exit(0 if own <= LIMIT_S else 1)


if __name__ == "__main__":
    main()
