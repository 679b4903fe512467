"""What flows through the node, and what happened: `segnode queue …`, `pacs pause …`, `journal`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from node import terminal
from node.errors import NotPossible
from node.jobs import State, StepName
from node.pipeline import QUEUES
from node.settings import load

if TYPE_CHECKING:
    from node.wiring import Hospital

queue_app = typer.Typer(
    help="Queues: what is due in each; pause, drain, resume.", no_args_is_help=True
)

QueueName = Annotated[str, typer.Argument(help="io, cpu, gpu, pacs; or all.")]
PeerName = Annotated[str, typer.Argument(help="Name of the peer.")]


@queue_app.command("list")
def queue_list() -> None:
    """What is due and what runs in each queue, and what stands still."""
    from node import tables

    ledger = _hospital().ledger
    rows = [
        tables.QueueRow(name, tuple(step.name for step in steps), ledger.waiting_for(steps),
                        ledger.running(steps))
        for name, steps in QUEUES.items()
    ]  # fmt: skip
    terminal.out().print(tables.queues(rows, ledger.pauses()))


@queue_app.command("pause")
def queue_pause(name: QueueName) -> None:
    """Start no further step of a queue. What runs goes on; nothing is lost."""
    ledger = _hospital().ledger
    for queue in _named(name):
        ledger.pause(f"queue:{queue}")
        terminal.out().print(
            f"Queue {queue} is paused. `segnode queue resume {queue}` lets it go on."
        )


@queue_app.command("drain")
def queue_drain(name: QueueName) -> None:
    """Pause a queue and wait until nothing of it runs any more, for example before an update."""
    ledger = _hospital().ledger
    steps = [step for queue in _named(name) for step in QUEUES[queue]]
    for queue in _named(name):
        ledger.pause(f"queue:{queue}")
    _until_none_runs(lambda: ledger.running(steps), "running steps")
    terminal.out().print(f"Nothing of {name} runs. `segnode queue resume {name}` lets it go on.")


@queue_app.command("resume")
def queue_resume(name: QueueName) -> None:
    """Go on with a paused queue."""
    ledger = _hospital().ledger
    for queue in _named(name):
        ledger.resume(f"queue:{queue}")
        terminal.out().print(f"Queue {queue} goes on.")


def pacs_pause(name: PeerName) -> None:
    """Send nothing more to a destination, for example during its maintenance. Nothing is lost."""
    _peer(name).ledger.pause(f"destination:{name}")
    terminal.out().print(f"{name} is paused. `segnode pacs resume {name}` lets it go on.")


def pacs_drain(name: PeerName) -> None:
    """Pause a destination and wait until nothing is being sent to it."""
    ledger = _peer(name).ledger
    ledger.pause(f"destination:{name}")
    _until_none_runs(
        lambda: sum(
            name in job.facts.get("plan", {})
            for job in ledger.jobs(limit=10_000, states=[State.RUNNING])
            if job.step is StepName.DELIVER
        ),
        "deliveries",
    )
    terminal.out().print(
        f"Nothing is being sent to {name}. `segnode pacs resume {name}` lets it go on."
    )


def pacs_resume(name: PeerName) -> None:
    """Go on with a paused destination."""
    _peer(name).ledger.resume(f"destination:{name}")
    terminal.out().print(f"{name} goes on.")


def journal(
    study: Annotated[
        str, typer.Argument(help="Orthanc's id of the study, a job's id, or an exported file.")
    ],
    verify: Annotated[bool, typer.Option("--verify", help="Only say whether it is whole.")] = False,
    export: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Write it as JSON lines; - for here.")
    ] = None,
) -> None:
    """What happened to a study: every state, who caused it, rule, model, results."""
    from node import tables
    from node.edges.journal import Journal, entries_of, lines_of, verdict_of

    if Path(study).is_file():  # kept elsewhere, verified without a node
        verify = True
        entries = entries_of(Path(study).read_text(errors="replace").splitlines())
        verdict = verdict_of(entries, None)
    else:
        ledger = _hospital().ledger
        found = Journal(ledger.database)
        study_id = study if study in found.studies() else ledger.find(study).study_id
        verdict = found.verify(study_id)
        entries = found.entries(study_id)
    if export is not None:
        text = "".join(f"{line}\n" for line in lines_of(entries))
        if str(export) == "-":
            sys.stdout.write(text)
        else:
            export.touch(mode=0o600)
            export.write_text(text)
    elif not verify:
        terminal.out().print(tables.journal(entries))
    if verdict.problem:
        terminal.err().print(f"[red]✗[/] {verdict.problem}.", highlight=False)
        raise typer.Exit(1)
    (terminal.err() if export else terminal.out()).print(
        f"[green]✓[/] {verdict.entries} entries, whole. Head: {verdict.head}", highlight=False
    )


def _hospital() -> Hospital:
    from node.wiring import Hospital

    return Hospital(load())


def _peer(name: str) -> Hospital:
    from node.destination_check import peer_named

    hospital = _hospital()
    peer_named(hospital, name)
    return hospital


def _named(name: str) -> list[str]:
    if name not in (*QUEUES, "all"):
        raise NotPossible(
            f"There is no queue {name!r}", remedy=f"Use one of: {', '.join(QUEUES)}, all."
        )
    return list(QUEUES) if name == "all" else [name]


def _until_none_runs(running: Callable[[], int], what: str) -> None:
    first = now = running()
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(),
        console=terminal.err(),
    ) as progress:  # fmt: skip
        bar = progress.add_task(what, total=max(first, 1))
        while now:
            progress.update(bar, description=f"{now} {what}", completed=max(first - now, 0))
            time.sleep(0.5)
            now = running()
