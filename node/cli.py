"""The `segnode` command: arguments in, tables out. What it does is in the modules it calls."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from node import cli_flow, cli_models, log, terminal
from node.errors import NodeError
from node.kinds import ResultKind
from node.settings import load, load_compute

if TYPE_CHECKING:
    from node.edges.ledger import Ledger

app = typer.Typer(
    name="segnode",
    help="A DICOM processing node: a CT that a PACS pushes comes back as a DICOM SEG.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
pacs_app = typer.Typer(help="Destinations: what they are and what they take.", no_args_is_help=True)
app.add_typer(pacs_app, name="pacs")
keys_app = typer.Typer(help="The vault's keys: which, new ones, the end.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")
app.add_typer(cli_models.models_app, name="models")
app.add_typer(cli_flow.queue_app, name="queue")


JobId = Annotated[str, typer.Argument(help="Id of the job, or the beginning of it.")]


@app.command()
def up() -> None:
    """Start the node: Orthanc, Redis, the watch, the console and the workers."""
    from node import service

    settings = load()
    with terminal.out().status("starting ..."):
        for part in service.up(settings):
            terminal.out().print(f"[green]✓[/] {part}")
    terminal.out().print(
        f"\nThe node is up. DICOM: AE title [bold]{settings.dicom.ae_title}[/], "
        f"port {settings.dicom.port}."
    )
    terminal.out().print(f"Console: {settings.orthanc_url}/segnode/  (user segnode, password in "
               f"{settings.folder('secrets')}/orthanc_password)")  # fmt: skip


@app.command()
def down() -> None:
    """Stop the node. Nothing is lost: it goes on where it was."""
    from node import service

    with terminal.out().status("stopping ..."):
        stopped = service.down(load())
    terminal.out().print("The node is down." if stopped else "The node was not running.")


@app.command()
def status() -> None:
    """Which processes run, and how many jobs are in which state."""
    from node import tables
    from node.edges.supervisor import Supervisor
    from node.wiring import Hospital

    settings = load()
    processes = Supervisor(settings.var_dir).processes()
    terminal.out().print(tables.processes(processes))
    terminal.out().print(tables.job_counts(Hospital(settings).ledger.counts()))
    if any(process.state != "RUNNING" for process in processes):
        raise typer.Exit(1)


@app.command()
def doctor(
    repair: Annotated[
        bool, typer.Option("--repair", help="Mend what the node's parts disagree about.")
    ] = False,
) -> None:
    """Check everything that the node needs, and say what to do about what is wrong."""
    from node import tables
    from node.doctor import examine

    findings = []
    with terminal.err().status("Looking at everything") as status:
        for finding in examine(load(), repair=repair):
            findings.append(finding)
            status.update(f"Looked at {finding.subject}")
    terminal.out().print(tables.findings(findings))
    if any(finding.level == "wrong" for finding in findings):
        raise typer.Exit(1)


@app.command()
def jobs(
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="How many, the newest first.")] = 50,
) -> None:
    """What became of every series that arrived: state, cause, remedy."""
    from node import tables
    from node.edges.console_json import job_shown

    found = _ledger().jobs(limit=limit)
    if as_json:
        now = time.time()
        _print_json([job_shown(job, now) for job in found])
    else:
        terminal.out().print(tables.jobs(found))


@app.command()
def job(job_id: JobId, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """One job: its steps, how long each took, why it waits or stopped."""
    from node import tables
    from node.edges.console_json import job_shown, timings_shown

    ledger = _ledger()
    found = ledger.find(job_id)
    attempts = ledger.attempts(found.id)
    if as_json:
        now = time.time()
        _print_json({**job_shown(found, now), **timings_shown(attempts, now)})
    else:
        terminal.out().print(tables.job(found, attempts))


@app.command()
def retry(job_id: JobId) -> None:
    """Start a stopped job again at the step where it stopped."""
    ledger = _ledger()
    again = ledger.retry(ledger.find(job_id).id)
    terminal.out().print(f"Job {again.id[:8]} starts step {again.step} again.")


@app.command()
def cancel(job_id: JobId) -> None:
    """Stop a job. What was received stays in Orthanc."""
    ledger = _ledger()
    stopped = ledger.cancel(ledger.find(job_id).id)
    terminal.out().print(f"Job {stopped.id[:8]} is {stopped.state}.")


@pacs_app.command("check")
def pacs_check(name: Annotated[str, typer.Argument(help="Name of the peer.")]) -> None:
    """Ask a destination what it takes: echo, SOP classes, transfer syntaxes, query, commitment."""
    from node import tables
    from node.destination_check import check_destination
    from node.wiring import Hospital

    found = check_destination(Hospital(load()), name)
    terminal.out().print(tables.findings(found.findings))
    if found.taken:
        terminal.out().print(tables.kinds_taken(found.taken))
    if found.proposed:
        line = ", ".join(f'"{kind}"' for kind in found.proposed)
        terminal.out().print(
            f"Profile that fits: results = [{line}]", markup=False, highlight=False
        )
    if any(finding.level == "wrong" for finding in found.findings):
        raise typer.Exit(1)


@keys_app.command("list")
def keys_list() -> None:
    """The keys of the vault, which is current, and how many data keys each one seals."""
    from node import tables, vault_keys
    from node.wiring import Hospital

    uses = vault_keys.key_uses(Hospital(load()))
    terminal.out().print(tables.key_uses(uses))
    if any(use.problem for use in uses):
        raise typer.Exit(1)


@keys_app.command("rotate")
def keys_rotate() -> None:
    """Seal every study's data key under a new key. No data is touched; the node may run."""
    from node import vault_keys
    from node.wiring import Hospital

    with Progress(
        SpinnerColumn(), TextColumn("data keys"), BarColumn(), TextColumn("{task.completed:.0f}"),
        TimeElapsedColumn(), console=terminal.err(),
    ) as progress:  # fmt: skip
        bar = progress.add_task("", total=None)
        done = vault_keys.rotate(
            Hospital(load()), lambda number, of: progress.update(bar, completed=number, total=of)
        )
    terminal.out().print(
        f"{done.rewrapped} data keys are now sealed with {done.name}"
        + (", which is new: back it up." if done.made else ".")
    )
    for problem in done.problems:
        terminal.err().print("[red]✗[/]", Text(problem), highlight=False)
    if done.problems:
        raise typer.Exit(1)


@keys_app.command("destroy")
def keys_destroy(
    wanted: Annotated[
        str,
        typer.Argument(
            metavar="STUDY",
            help="Study Instance UID, original or pseudonymous, or a job's id; - asks for it.",
        ),
    ],
    by: Annotated[
        Literal["study", "patient", "accession"],
        typer.Option(help="What STUDY is: also an original PatientID or AccessionNumber."),
    ] = "study",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Destroy the key of a study: nothing leads back to its patient any more."""
    from node import vault_keys
    from node.wiring import Hospital

    if wanted == "-":
        wanted = typer.prompt("Identifier", hide_input=True)
    hospital = Hospital(load())
    studies = vault_keys.studies_of(hospital, wanted, by)
    for study in studies:
        terminal.out().print(f"pseudonymous study {study}", highlight=False)
    if not yes:
        typer.confirm(f"Studies to destroy: {len(studies)}. For good?", abort=True)
    vault_keys.destroy(hospital, studies)
    terminal.out().print(f"Destroyed: {len(studies)}. docs/security.md says what else holds them.")


@keys_app.command("new-epoch")
def keys_new_epoch(
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Begin a new pseudonym key: later studies of a patient are not linked to earlier ones."""
    from node import vault_keys
    from node.wiring import Hospital

    if not yes:
        typer.confirm(
            "From the next start, known patients and studies get other pseudonyms. Go on?",
            abort=True,
        )
    epoch = vault_keys.new_epoch(Hospital(load()))
    terminal.out().print(
        f"Epoch {epoch} begins at the next `segnode up`. Back its key up; keep the old one."
    )


@app.command()
def process(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="DICOM, any depth.")],
    model: Annotated[str, typer.Option(help="Name of a model (`segnode models`).")],
    out: Annotated[Path, typer.Option(file_okay=False, help="Where the results are written.")],
    result: Annotated[
        list[ResultKind], typer.Option(help="A kind of result; may be given again.")
    ] = [ResultKind.SEG],  # noqa: B006 - typer reads it, nobody changes it
) -> None:
    """The same steps without servers, for a folder of DICOM."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: see service.py
    from node import tables
    from node.process import process_folder

    log.configure("process", quiet=True)
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(),
        console=terminal.err(),
    ) as progress:  # fmt: skip
        bar = progress.add_task("reading", total=1.0)

        def report(text: str, share: float) -> None:
            progress.update(bar, description=text, completed=share)

        written = process_folder(load(), folder, model, out, report, result)
    terminal.out().print(tables.written(written))
    if not all(one.ok for one in written):
        raise typer.Exit(1)


pacs_app.command("pause")(cli_flow.pacs_pause)
pacs_app.command("drain")(cli_flow.pacs_drain)
pacs_app.command("resume")(cli_flow.pacs_resume)
app.command()(cli_flow.journal)
app.command()(cli_models.train)
app.command()(cli_models.evaluate)


@app.command(hidden=True)
def run(role: Literal["watch", "console", "worker", "delivery", "compute"]) -> None:
    """One process of the node, in the foreground: what the supervisor or a container starts."""
    log.configure(role)
    try:
        _run(role)
    except NodeError:
        raise
    except Exception as error:  # noqa: BLE001 - its text goes to no log, whatever it is
        log.get().error("the process has failed", error=type(error).__name__,
                        place=log.place_of(error))  # fmt: skip
        sys.exit(1)


def _run(role: str) -> None:
    from node import programs
    from node.wiring import Hospital

    if role == "compute":
        programs.run_compute(load_compute())
        return
    who = {"watch": "sweeper", "console": "person at the console"}.get(role, "worker")
    {
        "watch": programs.run_watch,
        "console": programs.run_console,
        "worker": programs.run_worker,
        "delivery": programs.run_delivery,
    }[role](Hospital(load(), who))


def main() -> None:
    """Run the command; a failure is two lines, what is wrong and what to do, and status 1."""
    try:
        app()
    except NodeError as error:
        _fail(str(error), error.remedy)


def _fail(cause: str, remedy: str) -> None:
    terminal.err().print("[red]✗[/]", Text(cause), highlight=False)
    terminal.err().print("  [bold]→[/]", Text(remedy), highlight=False)
    sys.exit(1)


def _ledger() -> Ledger:
    from node.wiring import Hospital

    return Hospital(load()).ledger


def _print_json(value: object) -> None:
    json.dump(value, sys.stdout, indent=2, sort_keys=True)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
