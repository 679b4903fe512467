"""Run one step of one job: claim → step → record → wake the next.

The ledger decides whether the step may run; the class of an error decides what happens after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from node import log
from node.errors import (
    DamagedArtifact,
    EmptyResult,
    GeometryError,
    Incomplete,
    LeaseLost,
    NodeError,
    Quarantined,
    Rejected,
    Unavailable,
    UnsuitableInput,
    UnsupportedTransferSyntax,
)
from node.jobs import (
    Done,
    Event,
    Explained,
    HandedOver,
    Job,
    NotYet,
    Outcome,
    Redirect,
    Routed,
    Step,
    StepName,
    Superseded,
    unsuitable,
)
from node.pipeline import BY_NAME
from node.pipeline.lease import kept_alive
from node.ports import Leases

#: So often the working data of one job are made again from Orthanc's copy.
_MAX_REMADE = 3

#: What is the series' own fault, and not the node's: a rule may want the hospital to be told.
_OF_THE_SERIES = (EmptyResult, GeometryError, UnsuitableInput, UnsupportedTransferSyntax)

StepFunction = Callable[[Job], Outcome]
Wake = Callable[[Job], None]


@dataclass(frozen=True)
class Terms:
    """On which terms steps run here.

    A worker that says nothing for ``lease_s`` is taken for dead, and its step is given to another.
    ``at_most``: of a queue, how many jobs may run at once, wherever that is. ``end_process`` is
    called where a step runs on after its deadline, with the lease gone.
    """

    lease_s: float = 7.0
    steps: Mapping[StepName, Step] = field(default_factory=lambda: BY_NAME)
    at_most: Mapping[str, int] = field(default_factory=dict)
    end_process: Callable[[], None] = lambda: None


class Fault(Exception):
    """A defect of ours: recorded on the job, and raised so that the worker's log shows it.

    Carries the class and place of the original error, never its text, which may hold a patient's
    value.
    """


def run_next(
    queue: str,
    *,
    ledger: Leases,
    steps: Mapping[StepName, StepFunction],
    wake: Wake,
    terms: Terms,
) -> bool:
    """Run the step whose turn it is in ``queue``, record what came of it, wake what follows.

    False when nothing is due there.

    Raises
    ------
    Fault
        The step failed in a way that it does not know; the job is marked failed.
    """
    mine = [step for step in terms.steps.values() if step.queue == queue]
    job = ledger.claim_next(mine, terms.lease_s, terms.at_most.get(queue))
    if job is None:
        return False
    _run(job, ledger, steps, wake, terms)
    return True


def _run(
    job: Job,
    ledger: Leases,
    steps: Mapping[StepName, StepFunction],
    wake: Wake,
    terms: Terms,
) -> None:
    logger = log.get().bind(job_id=job.id, step=str(job.step), attempt=job.attempt)
    try:
        give_up_s = terms.steps[job.step].deadline_s + terms.lease_s
        with kept_alive(ledger, job, terms.lease_s, give_up_s, terms.end_process):
            outcome = steps[job.step](job)
    except LeaseLost:
        logger.warning("step stopped: it is another worker's by now")
        return
    except NodeError as error:
        logger.warning("step stopped", error=type(error).__name__)
        record_failure(ledger, job, error)
        return
    except Exception as error:  # noqa: BLE001 - the one place: recorded, scrubbed, raised again
        fault = Fault(f"{type(error).__name__} at {log.place_of(error)}")
        logger.error("step failed", error=type(error).__name__, place=log.place_of(error))
        ledger.end(
            job,
            Event.FAULT,
            cause=f"Unexpected {fault}",
            remedy="This is a defect of segnode: report it with this line, then retry the job.",
            error=type(error).__name__,
        )
        raise fault from None
    logger.info("step done", outcome=type(outcome).__name__.lower())
    for due in _record(ledger, job, outcome):
        wake(due)


def record_failure(ledger: Leases, job: Job, error: NodeError) -> None:
    """Let the class of the error decide what becomes of the job."""
    cause, kind = str(error), type(error).__name__
    if reason := unsuitable(job):
        cause = f"{reason.cause}; and telling so failed: {cause}"
    elif isinstance(error, _OF_THE_SERIES) and _wants_explanation(job):
        told = {"error": kind, "cause": cause, "remedy": error.remedy}
        ledger.redirect(job, StepName.ENCODE, {"unsuitable": told}, cause)
        return
    match error:
        case DamagedArtifact() if (times := job.facts.get("remade", 0)) < _MAX_REMADE:
            again = {"remade": times + 1, "unsuitable": None}
            ledger.redirect(job, StepName.DEIDENTIFY, again, cause)
        case DamagedArtifact():
            ledger.end(
                job, Event.ATTEMPTS_USED_UP, cause=f"{cause}, {_MAX_REMADE} times over",
                remedy="Check disk and memory of the node's artifact folder, then retry the job.",
                error=kind, facts={"remade": 0},
            )  # fmt: skip
        case Unavailable():
            ledger.wait(
                job, cause=cause, remedy=error.remedy, error=kind,
                delay_s=back_off_s(job.attempt), patience_s=BY_NAME[job.step].patience_s,
            )  # fmt: skip
        case Incomplete():
            ledger.end(job, Event.INCOMPLETE, cause=cause, remedy=error.remedy, error=kind)
        case Quarantined():
            ledger.end(job, Event.QUARANTINE, cause=cause, remedy=error.remedy, error=kind)
        case Rejected():
            ledger.end(job, Event.REJECT, cause=cause, remedy=error.remedy, error=kind)
        case _:
            ledger.end(job, Event.FAULT, cause=cause, remedy=error.remedy, error=kind)


def _wants_explanation(job: Job) -> bool:
    """The rule wants it, and there is a crosswalk to send it home with."""
    return bool(job.facts.get("explain")) and "crosswalk" in job.facts


def back_off_s(attempt: int) -> float:
    """Seconds until the next try: 1, 2, 4 … and never more than 15 minutes."""
    return float(min(2 ** min(attempt - 1, 10), 900))


def _record(ledger: Leases, job: Job, outcome: Outcome) -> list[Job]:
    match outcome:
        case Done(facts):
            following = ledger.finish(job, facts)
            return [following] if following and following.step is not job.step else []
        case Redirect(step, facts, cause):
            following = ledger.redirect(job, step, facts, cause)
            return [following] if following else []
        case Explained():
            ledger.explained(job, outcome)
            return []
        case Superseded(facts):
            ledger.end(
                job, Event.SUPERSEDE, facts=facts, error="",
                cause="A newer result of the series has replaced it",
                remedy="Nothing to do: see the newer job of this series.",
            )  # fmt: skip
            return []
        case Routed(wishes):
            return ledger.fork(job, wishes)
        case HandedOver():
            return []
        case NotYet(reason, facts, delay_s):
            ledger.wait(
                job,
                cause=str(reason),
                remedy=reason.remedy,
                error=type(reason).__name__,
                delay_s=back_off_s(job.attempt) if delay_s is None else delay_s,
                facts=facts,
                patience_s=BY_NAME[job.step].patience_s if delay_s is None else None,
            )
            return []
