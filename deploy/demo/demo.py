"""`make demo`: a stand-in PACS pushes a real chest CT, and the segmentation comes home.

demo.py run     start the node and the PACS, push, watch, show what came back; both stay up
demo.py down    stop both
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import time
from pathlib import Path

import pydicom
from pacs import REPOSITORY, StandInPacs
from rich import box
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from node import service
from node.edges.console_json import timings_shown
from node.edges.ledger import Ledger
from node.edges.orthanc_config import DicomPeer
from node.errors import NodeError
from node.jobs import Job, State, StepName
from node.pipeline import STEPS
from node.pipeline.delivery import read_deliveries
from node.settings import Settings, load
from node.wiring import Hospital

CT = Path(__file__).parent / "ct"
OUT = REPOSITORY / "var" / "demo"
PACS_DICOM_PORT, PACS_HTTP_PORT = 4243, 8052
OPEN = (State.QUEUED, State.RUNNING, State.WAITING)
GIVE_UP_S = 600

out = Console(highlight=False)


def main() -> int:
    settings = load()
    pacs = StandInPacs(
        REPOSITORY / "var" / "pacs",
        ae_title="HOSPITAL",
        dicom_port=PACS_DICOM_PORT,
        http_port=PACS_HTTP_PORT,
        node=DicomPeer(
            "segnode", settings.dicom.ae_title, "127.0.0.1", settings.dicom.port, may_query=True
        ),
    )
    try:
        return run(settings, pacs) if sys.argv[1:] == ["run"] else down(settings, pacs)
    except NodeError as error:
        out.print(f"[red]✗[/] {error}\n  → {error.remedy}")
        return 1


def run(settings: Settings, pacs: StandInPacs) -> int:
    started = time.monotonic()
    out.rule("segnode: a chest CT goes out, a segmentation comes home")
    with out.status("starting the node ..."):
        for part in service.up(settings):
            out.print(f"[green]✓[/] {part} answers")
    with out.status("starting the stand-in hospital PACS ..."):
        pacs.start()
        study_id, series_id = pacs.keep(sorted(CT.glob("*.dcm")))
    out.print(
        f"[green]✓[/] hospital PACS answers (started all in {time.monotonic() - started:.1f} s)"
    )

    ledger = Hospital(settings).ledger
    before = pacs.results(study_id)
    pushing = time.monotonic()
    sent = pacs.push(series_id)
    out.print(
        f"[green]✓[/] the PACS pushed {sent} CT images by C-STORE "
        f"in {time.monotonic() - pushing:.1f} s"
    )
    job = watch(ledger, series_id)
    if job is None or job.state is not State.CONFIRMED:
        return report_failure(job)
    if before:
        out.print("  The PACS had sent these images before: nothing was processed or sent twice.")
    return show(settings, pacs, study_id, job, ledger)


def watch(ledger: Ledger, series_id: str) -> Job | None:
    """Live progress, step by step, until the job ends."""
    job: Job | None = None
    deadline = time.monotonic() + GIVE_UP_S
    with Live(console=out, refresh_per_second=8) as live:
        while time.monotonic() < deadline:
            job = next((one for one in ledger.jobs() if one.series_id == series_id), None)
            if job:
                live.update(drawn(job, ledger))
                if job.state not in OPEN:
                    break
            time.sleep(0.1)
    out.print()
    return job


def drawn(job: Job, ledger: Ledger) -> Table:
    """One line a step: done, how far, how long, what for."""
    timings = timings_shown(ledger.attempts(job.id), time.time())["timings"]
    seconds = {timing["step"]: timing["seconds"] for timing in timings}
    table = Table.grid(padding=(0, 1))
    for width in (1, 10, 20, 7):
        table.add_column(no_wrap=True, width=width)
    table.add_column(style="dim")  # the only one that gives way on a narrow screen
    reached = list(StepName).index(job.step) + (job.state is State.CONFIRMED)
    for number, step in enumerate(STEPS):
        done, current = number < reached, number == reached
        share = 1.0 if done else job.progress if current else 0.0
        note = job.cause if current and job.cause else step.does
        table.add_row(
            "[green]✓[/]" if done else "[blue]▸[/]" if current else " ",
            step.name,
            ProgressBar(total=1.0, completed=share, width=20),
            f"{seconds[step.name]:5.1f} s" if step.name in seconds else "",
            Text(note, no_wrap=True, overflow="ellipsis"),
        )
    return table


def show(settings: Settings, pacs: StandInPacs, study_id: str, job: Job, ledger: Ledger) -> int:
    """The table, the picture, the returned objects, the report, the console's address."""
    returned = OUT / "returned"
    shutil.rmtree(returned, ignore_errors=True)
    returned.mkdir(parents=True)
    table = Table(box=box.SIMPLE, title="What came back", title_justify="left")
    for column in ("object", "what", "segments", "file"):
        table.add_column(column)
    objects = []
    for number, data in enumerate(pacs.results(study_id), start=1):
        seg = pydicom.dcmread(io.BytesIO(data))
        file = returned / f"seg-{number}.dcm"
        file.write_bytes(data)
        labels = [segment.SegmentLabel for segment in seg.SegmentSequence]
        table.add_row(
            "DICOM SEG",
            f"{seg.NumberOfFrames} frames of {seg.Rows}x{seg.Columns}, {len(data) / 1e6:.1f} MB",
            ", ".join(labels),
            str(file.relative_to(REPOSITORY)),
        )
        objects.append({"file": file.name, "bytes": len(data), "segments": labels,
                        "frames": int(seg.NumberOfFrames)})  # fmt: skip
    overlay = OUT / "overlay.png"
    overlay.write_bytes(Hospital(settings).artifacts.get(f"{job.id}/overlay.png"))

    timings = timings_shown(ledger.attempts(job.id), time.time())["timings"]
    steps = Table(box=box.SIMPLE, title="How long each step took", title_justify="left")
    steps.add_column("step")
    steps.add_column("seconds", justify="right")
    steps.add_column("")
    for timing, step in zip(timings, STEPS, strict=True):
        steps.add_row(timing["step"], f"{timing['seconds']:.2f}", f"[dim]{step.does}")
    steps.add_row("all steps", f"{sum(timing['seconds'] for timing in timings):.2f}", "")
    out.print(table)
    out.print(steps)
    proofs = {name: one.proof for name, one in read_deliveries(job).items()}
    for name, proof in proofs.items():
        out.print(f"Proof that {name} keeps it: [green]{proof}[/]")

    report = {
        "job": job.id, "state": job.state, "model": job.model, "model_digest": job.model_digest,
        "images": len(job.instance_ids), "returned": objects, "timings": timings,
        "proofs": proofs,
    }  # fmt: skip
    (OUT / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    secret = settings.folder("secrets") / "orthanc_password"
    out.print(f"\nPicture   [bold]{overlay.relative_to(REPOSITORY)}[/]")
    out.print(f"Report    {(OUT / 'report.json').relative_to(REPOSITORY)}")
    out.print(
        f"Console   [bold]{settings.orthanc_url}/segnode/[/]   user segnode, password in {secret}"
    )
    out.print("The node stays up. `make down` stops it.")
    return 0 if objects else 1


def report_failure(job: Job | None) -> int:
    if job is None:
        out.print("[red]✗[/] The node made no job of the series.\n  → See var/log/watch.log.")
    else:
        out.print(f"[red]✗[/] The job is {job.state} in step {job.step}: {job.cause}")
        out.print(f"  → {job.remedy}")
    return 1


def down(settings: Settings, pacs: StandInPacs) -> int:
    with out.status("stopping ..."):
        stopped = [service.down(settings), pacs.stop()]
    out.print("The node and the PACS are down." if any(stopped) else "Nothing was running.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
