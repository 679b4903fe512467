"""Trials: several studies at once through a real node, one thing goes wrong, nothing may be lost.

    bench/faults.py                             each fault once
    bench/faults.py --trials 200 --seed 1000    seeds 1000 to 1199, each fault in turn
    bench/faults.py --seed 1017 --trials 1      that trial again
    bench/faults.py --only "kill orthanc"       one fault, or several
    bench/faults.py --postgresql                with PostgreSQL for the ledger, and its faults

A trial sends three to five studies from two PACS (an Orthanc, and one made with pynetdicom) to a
node, breaks one thing at a moment of the seed's choice, mends it, and judges: every study that was
acknowledged ends confirmed or in a named state with a reason; what was left held is confirmed
after a retry; the PACS hold every result once, with the pixels of an undisturbed run, and nothing
that no job has made. Exit status 1 tells that a trial failed; its logs and ledger are kept.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `tests` is no installed package

from tests.faults.catalogue import FAULTS
from tests.faults.site import Site
from tests.faults.trial import Outcome, Undisturbed, evidence, plain, plan_of, run_trial
from tests.orthanc_server import REPOSITORY
from tests.postgres import PostgresCluster

#: Trials that nothing disturbs, before the first: models are loaded, and times are known.
WARM_UP_SEEDS = (1, 2, 3)
#: A node's small disks hold what so many trials leave: then a new one takes over.
TRIALS_OF_A_NODE = 40


def trials(
    seeds: Sequence[int],
    faults: Sequence[str],
    folder: Path,
    keep: Path,
    out: Console,
    outcomes: list[Outcome],
    postgres: PostgresCluster | None = None,
) -> None:
    """Add every seed's outcome; a new node for every 40, and for one that a trial left unwell."""
    waiting = list(seeds)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=out) as progress:
        bar = progress.add_task("starting a node and two PACS", total=len(seeds))
        while waiting:
            number = len(outcomes)
            with Site(folder / f"site-{number}", postgres=postgres) as site:
                undisturbed = Undisturbed()
                possible = [name for name in faults if FAULTS[name].possible(site)]
                for name in sorted(set(faults) - set(possible)):
                    out.print(f"[yellow]left out, not possible here: {name}")
                for seed in WARM_UP_SEEDS if not outcomes else WARM_UP_SEEDS[:2]:
                    plan = plan_of(seed, ["none"])
                    run_trial(site, plan, site.folder / f"warm-up-{seed}", undisturbed)
                for seed in waiting[:TRIALS_OF_A_NODE]:
                    waiting.remove(seed)
                    plan = plan_of(seed, possible)
                    progress.update(bar, description=f"{seed}: {plan.fault.name}")
                    outcome = _one(site, plan, folder / f"trial-{seed}", undisturbed)
                    outcomes.append(outcome)
                    progress.advance(bar)
                    if not out.is_terminal:  # nobody sees the bar
                        out.print(
                            line(len(outcomes), outcome),
                            highlight=False,
                            markup=False,
                            soft_wrap=True,
                        )
                    if outcome.all_problems:
                        out.print(f"[red]seed {seed}, {outcome.fault}[/red]")
                        for problem in outcome.all_problems:
                            out.print(f"    {problem}", markup=False)
                        evidence(site, keep / f"seed-{seed}", outcome)
                        break  # a fresh node for the next


def _one(site: Site, plan, folder: Path, undisturbed: Undisturbed) -> Outcome:  # type: ignore[no-untyped-def]
    try:
        return run_trial(site, plan, folder, undisturbed)
    except Exception as error:  # noqa: BLE001 - a trial that could not be made is no success
        told = f"the trial itself failed: {type(error).__name__}: {error}"
        return Outcome(plan.seed, plan.fault.name, [], None, "", 0.0, problems=[told])


def line(number: int, outcome: Outcome) -> str:
    """One trial in one line."""
    when = "" if outcome.broken_at_s is None else f"broken at {outcome.broken_at_s:.1f} s"
    ends = ", ".join(f"{study.state} ({study.tries} tries)" for study in outcome.studies)
    delay = "" if outcome.delay_s is None else f", delay {outcome.delay_s:.1f} s"
    return (
        f"{number}: seed {outcome.seed}, {outcome.fault}, {when} {outcome.broken_in}, "
        f"{outcome.seconds:.1f} s{delay}: {ends}"
    )


COLUMNS = ("fault", "trials", "studies", "confirmed", "held, then confirmed", "wrong",
           "delay, median s", "longest s")  # fmt: skip


def summary(outcomes: Sequence[Outcome]) -> Table:
    """Fault by fault: what came of it."""
    table = Table(box=box.SIMPLE, title=f"{len(outcomes)} trials", title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "fault" else "right")
    *faults, together = _rows(outcomes)
    for row in faults:
        wrong = "" if row[5] == "0" else "[red]"
        table.add_row(*row[:5], wrong + row[5], *row[6:])
    table.add_section()
    table.add_row(*together)
    return table


def recovery(outcomes: Sequence[Outcome]) -> str:
    """How many trials with one thing killed ended as soon as they must."""
    known = [
        (one.delay_s, one.recovers_in_s)
        for one in outcomes
        if one.delay_s is not None and one.recovers_in_s is not None
    ]
    soon = sum(delay_s <= bound_s for delay_s, bound_s in known)
    longest = max((delay_s for delay_s, _ in known), default=0.0)
    return (
        f"One thing killed: {soon} of {len(known)} trials ended within workers.recovery_s and the "
        f"longest step of an undisturbed run; the longest delay was {longest:.1f} s"
    )


def markdown(outcomes: Sequence[Outcome]) -> str:
    """The same for a page of docs."""
    rows = [COLUMNS, ("---", *("---:" for _ in COLUMNS[1:])), *_rows(outcomes)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _rows(outcomes: Sequence[Outcome]) -> list[tuple[str, ...]]:
    names = [name for name in FAULTS if any(outcome.fault == name for outcome in outcomes)]
    rows = [
        (name, *_row([outcome for outcome in outcomes if outcome.fault == name])) for name in names
    ]
    return [*rows, ("all", *_row(outcomes)[:5], "", "")]


def _row(outcomes: Sequence[Outcome]) -> list[str]:
    studies = [study for outcome in outcomes for study in outcome.studies]
    delays = [outcome.delay_s for outcome in outcomes if outcome.delay_s is not None]
    wrong = sum(bool(outcome.all_problems) for outcome in outcomes)
    return [
        str(len(outcomes)),
        str(len(studies)),
        str(sum(study.state == "confirmed" for study in studies)),
        str(sum(study.retried and study.state.endswith("then confirmed") for study in studies)),
        str(wrong),
        f"{median(delays):.1f}" if delays else "",
        f"{max(delays):.1f}" if delays else "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, help="by default, each fault once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=FAULTS, default=list(FAULTS), metavar="FAULT")
    parser.add_argument("--postgresql", action="store_true", help="keep the ledger in PostgreSQL")
    parser.add_argument("--json", type=Path, default=REPOSITORY / "var" / "bench_faults.json")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the node is stopped, too
    out = Console() if sys.stdout.isatty() else Console(width=120)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    keep = arguments.json.parent / "bench_faults_kept"
    started = time.time()
    faults = [
        name for name in arguments.only
        if FAULTS[name].needs != "PostgreSQL" or arguments.postgresql
    ]  # fmt: skip
    seeds = range(arguments.seed, arguments.seed + (arguments.trials or len(faults)))
    outcomes: list[Outcome] = []
    with (
        contextlib.suppress(KeyboardInterrupt, SystemExit),  # what there is, is told
        tempfile.TemporaryDirectory(prefix="segnode-faults-", ignore_cleanup_errors=True) as name,
        PostgresCluster() if arguments.postgresql else contextlib.nullcontext() as postgres,
    ):
        trials(seeds, faults, Path(name), keep, out, outcomes, postgres)
    out.print(summary(outcomes))
    out.print(recovery(outcomes), highlight=False, soft_wrap=True)
    if len(outcomes) < len(seeds):
        out.print(f"[red]stopped after {len(outcomes)} of {len(seeds)} trials")
    wrong = [outcome for outcome in outcomes if outcome.all_problems]
    document = {
        "date": time.strftime("%Y-%m-%d", time.gmtime(started)),
        "machine": f"{os.cpu_count()} cores, {platform.platform()}",
        "ledger": "PostgreSQL" if arguments.postgresql else "SQLite",
        "minutes": round((time.time() - started) / 60, 1),
        "trials": [plain(outcome) for outcome in outcomes],
    }
    arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    arguments.json.with_suffix(".md").write_text(markdown(outcomes))
    out.print(f"Written to {arguments.json}, and the table beside it")
    # The seed draws among the faults of this run: those belong to the replay.
    again = " --postgresql" * arguments.postgresql
    if arguments.only != list(FAULTS):
        again += " --only " + shlex.join(arguments.only)
    for outcome in wrong:
        out.print(f"[red]wrong:[/red] bench/faults.py --seed {outcome.seed} --trials 1{again}")
    sys.exit(1 if wrong or len(outcomes) < len(seeds) else 0)


if __name__ == "__main__":
    main()
