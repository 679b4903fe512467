"""What the `segnode` command shows, as tables for a person."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import TYPE_CHECKING, Any

from pydicom.uid import UID
from rich import box
from rich.console import Group, RenderableType
from rich.style import StyleType
from rich.table import Table
from rich.text import Text

from node.edges.console_json import deliveries_shown
from node.edges.journal import Entry
from node.edges.ledger_people import Pause
from node.edges.supervisor import ProcessInfo
from node.findings import Finding
from node.jobs import Attempt, Job, State
from node.kinds import ResultKind
from node.manifest import CommandManifest, ModelManifest

if TYPE_CHECKING:
    from node.process import Written
    from node.vault_keys import KeyUse

_DELIVERY_COLOURS = {
    "waiting": "yellow", "accepted": "blue", "confirmed": "green", "refused": "red",
    "replaced": "dim",
}  # fmt: skip
_COLOURS: Mapping[State, str] = {
    State.QUEUED: "cyan",
    State.RUNNING: "blue",
    State.WAITING: "yellow",
    State.CONFIRMED: "green",
    State.REJECTED: "red",
    State.INCOMPLETE: "magenta",
    State.QUARANTINED: "magenta",
    State.FAILED: "red",
    State.CANCELED: "dim",
    State.SUPERSEDED: "dim",
}
_GOOD, _WRONG = Text("✓", "green"), Text("✗", "red")


class PlainTable(Table):
    """A table that shows text as it is: a stored cause may hold what rich takes for markup."""

    def add_row(
        self, *cells: RenderableType | None, style: StyleType | None = None,
        end_section: bool = False,
    ) -> None:  # fmt: skip
        """Add one row; what is coloured comes as ``Text``."""
        plain = (Text(cell) if isinstance(cell, str) else cell for cell in cells)
        super().add_row(*plain, style=style, end_section=end_section)


def processes(infos: Sequence[ProcessInfo]) -> Table:
    """The node's processes."""
    table = PlainTable(box=box.SIMPLE, title="Processes", title_justify="left")
    for column in ("process", "state", "pid", "since"):
        table.add_column(column)
    for info in infos:
        colour = "green" if info.state == "RUNNING" else "red"
        table.add_row(info.name, Text(info.state.lower(), colour), str(info.pid or ""),
                      _span(info.since_s) if info.pid else info.description)  # fmt: skip
    return table


def job_counts(counts: Mapping[State, int]) -> Table:
    """How many jobs are in which state."""
    table = PlainTable(box=box.SIMPLE, title="Jobs", title_justify="left", show_header=False)
    for state in State:
        if state in counts:
            table.add_row(Text(state, _COLOURS[state]), str(counts[state]))
    if not counts:
        table.add_row("none yet", "")
    return table


def jobs(found: Sequence[Job]) -> Table:
    """The newest jobs with their state and what a person should know of it."""
    table = PlainTable(box=box.SIMPLE)
    for column in (
        "job",
        "arrived",
        "model",
        "priority",
        "images",
        "step",
        "state",
        "why, and what to do",
    ):
        table.add_column(column, overflow="fold")
    for job in found:
        table.add_row(
            job.id[:8], f"{datetime.fromtimestamp(job.created_at):%m-%d %H:%M:%S}",
            job.model or "-", str(job.priority), str(len(job.instance_ids)), str(job.step),
            _state(job), _reason(job),
        )  # fmt: skip
    return table


@dataclass(frozen=True)
class QueueRow:
    """One queue: its steps, how many jobs have them before them, how many run."""

    name: str
    steps: tuple[str, ...]
    waiting: int
    running: int


def queues(rows: Sequence[QueueRow], pauses: Sequence[Pause]) -> RenderableType:
    """What each queue has to do, and what a person has paused."""
    paused = {pause.name: pause for pause in pauses}
    table = PlainTable(box=box.SIMPLE)
    for column in ("queue", "steps", "waiting", "running", ""):
        table.add_column(column, overflow="fold")
    for row in rows:
        stands = paused.pop(f"queue:{row.name}", None)
        table.add_row(row.name, ", ".join(row.steps), str(row.waiting), str(row.running),
                      _paused(stands) if stands else Text("goes", "green"))  # fmt: skip
    for name, stands in paused.items():
        table.add_row(name.removeprefix("destination:"), "a destination", "", "", _paused(stands))
    return table


def journal(entries: Sequence[Entry]) -> Table:
    """What happened to a study, the oldest first."""
    table = PlainTable(box=box.SIMPLE)
    for column in ("", "when", "job", "step", "event", "state", "who", "why"):
        table.add_column(column, overflow="fold")
    for one in entries:
        told = one.entry
        when = datetime.fromtimestamp(told["at_ms"] / 1000)
        state = State(told["state"])
        shown = Text(state, _COLOURS[state]) if "job" in told else ""
        table.add_row(
            str(one.number), f"{when:%m-%d %H:%M:%S}", told.get("job", "")[:8], told["step"],
            told["event"], shown, told["who"],
            told.get("cause", "") or _made(told),
        )  # fmt: skip
    return table


def _made(told: Mapping[str, Any]) -> str:
    results, model = told.get("results", ()), told.get("model", "")
    return f"{model}, {len(results)} results" if results else model


def _paused(pause: Pause) -> Text:
    ago = _span(time.time() - pause.since)
    return Text.assemble(("paused", "yellow"), f" {ago} ago by {pause.who}")


def job(one: Job, attempts: Sequence[Attempt]) -> RenderableType:
    """One job and every try of every step."""
    facts = PlainTable(box=None, show_header=False)
    facts.add_row("job", one.id)
    facts.add_row("state", _state(one))
    for name, value in (
        ("model", one.model), ("rule", one.rule), ("priority", str(one.priority)),
        ("images", str(len(one.instance_ids))),
        ("sender", one.facts.get("sender", "")), ("destinations", ", ".join(one.destinations)),
        ("cause", one.cause), ("remedy", one.remedy),
    ):  # fmt: skip
        if value:
            facts.add_row(name, str(value))
    if completeness := one.facts.get("completeness"):
        facts.add_row("series", completeness["says"])
    if asked := one.facts.get("asked_source"):
        facts.add_row("source", asked)
    for name, series in one.facts.get("replaces", {}).items():
        facts.add_row("replaces", f"{sum(map(len, series.values()))} earlier objects at {name}")
    for reason in one.facts.get("left_out", ()):
        facts.add_row("left out", reason)
    for remark in one.facts.get("remarks", ()):
        facts.add_row("remark", remark)
    if told := one.facts.get("explained"):
        facts.add_row("told why", ", ".join(told))
    tries = PlainTable(box=box.SIMPLE)
    for column in ("step", "try", "outcome", "seconds"):
        tries.add_column(column)
    # A report that is awaited for days is looked for hundreds of times: that is one line.
    for (step, outcome), same in groupby(attempts, lambda one: (one.step, one.outcome)):
        found = list(same)
        numbers = str(found[0].attempt) + (f", {len(found)} times" if len(found) > 1 else "")
        seconds = sum((one.ended_at or time.time()) - one.started_at for one in found)
        tries.add_row(str(step), numbers, outcome or "running", f"{seconds:.2f}")
    return Group(facts, *deliveries(one), tries)


def deliveries(one: Job) -> list[Table]:
    """How far each destination of a job is; nothing before there is something to deliver."""
    found = deliveries_shown(one, time.time())
    table = PlainTable(box=box.SIMPLE)
    for column in ("destination", "results", "taken", "state", "why, and what to do"):
        table.add_column(column, overflow="fold")
    for line in found:
        colour = _DELIVERY_COLOURS[line["state"]]
        table.add_row(
            line["destination"], ", ".join(line["results"]),
            f"{line['taken']} of {line['objects']}",
            Text(f"{line['state']}{', given up' if line['given_up'] else ''}", colour),
            _of_delivery(line),
        )  # fmt: skip
    return [table] if found else []


def _of_delivery(line: Mapping[str, Any]) -> Text:
    said = [f"by {line['proof']}, {line['confirmed_at']}"] if line["proof"] else []
    if line["fallback"]:
        said.append(f"refused the Segmentation ({line['fallback']}): captures instead")
    said += [*line["warnings"], *filter(None, [line["cause"]])]
    text = Text("\n".join(said))
    if line["next_try_in_s"]:
        text.append(f"\nnext try in {_span(line['next_try_in_s'])}", "yellow")
    if line["remedy"]:
        text.append(f"\n→ {line['remedy']}", "dim")
    return text


def models(found: Mapping[str, ModelManifest]) -> RenderableType:
    """The models, what they take and give."""
    if not found:
        return Text("No model is installed; see models/README.md.")
    table = PlainTable(box=box.SIMPLE)
    for column in ("model", "version", "takes", "segments", "licence", "measured"):
        table.add_column(column, overflow="fold")
    for name, manifest in found.items():
        if isinstance(manifest, CommandManifest):
            name += f"\nruns {manifest.command.run[0]}"
        table.add_row(
            name, manifest.version, manifest.input.wanted,
            "\n".join(f"{s.number} {s.label}" for s in manifest.segments), manifest.licence,
            "\n".join(f"{key} {value}" for key, value in manifest.metrics.items()),
        )  # fmt: skip
    return table


def key_uses(found: Sequence[KeyUse]) -> RenderableType:
    """The vault's keys, and how many data keys each one seals."""
    if not found:
        return Text("There is no key yet; `segnode up` makes the first ones.")
    table = PlainTable(box=box.SIMPLE)
    for column in ("key", "from", "data keys", ""):
        table.add_column(column, overflow="fold")
    for use in found:
        if use.problem:
            note = Text(use.problem, "red")
        elif use.current:
            note = Text("current: new studies are sealed with it", "green")
        else:
            note = Text("" if use.data_keys else "not needed any more", "dim")
        table.add_row(use.name, use.place, str(use.data_keys), note)
    return table


def findings(found: Sequence[Finding]) -> Table:
    """What the doctor found."""
    signs = {"good": _GOOD, "note": Text("!", "yellow"), "wrong": _WRONG}
    table = PlainTable(box=box.SIMPLE, show_header=False)
    for finding in found:
        text = finding.found + (f"\n→ {finding.remedy}" if finding.remedy else "")
        table.add_row(signs[finding.level], finding.subject, text)
    return table


def kinds_taken(found: Mapping[ResultKind, Mapping[str, bool]]) -> Table:
    """Which kinds of result a destination takes, in which transfer syntax."""
    table = PlainTable(box=box.SIMPLE)
    for column in ("result", "SOP class", *next(iter(found.values()))):
        table.add_column(column, overflow="fold")
    for kind, syntaxes in found.items():
        signs = [_GOOD if accepted else Text("-", "dim") for accepted in syntaxes.values()]
        table.add_row(str(kind), UID(kind.sop_class_uid).name.removesuffix(" Storage"), *signs)
    return table


def written(found: Sequence[Written]) -> Table:
    """What became of each series of a folder."""
    table = PlainTable(box=box.SIMPLE)
    for column in ("", "series", "outcome", "files"):
        table.add_column(column, overflow="fold")
    for one in found:
        sign = _GOOD if one.ok else _WRONG
        table.add_row(sign, one.series, one.outcome, "\n".join(map(str, one.files)))
    return table


def _state(job: Job) -> Text:
    colour = _COLOURS[job.state]
    share = f" {job.progress:.0%}" if job.state is State.RUNNING and job.progress else ""
    return Text(f"{job.state}{share}", colour)


def _reason(job: Job) -> Text:
    text = Text(job.cause)
    if job.next_try_at:
        text.append(f"\nnext try in {_span(max(0.0, job.next_try_at - time.time()))}", "yellow")
    if job.remedy:
        text.append(f"\n→ {job.remedy}", "dim")
    return text


def _span(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
