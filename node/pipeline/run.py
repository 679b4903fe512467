"""Run one step of one job: claim → step → record → wake the next.

The ledger decides whether the step may run; the class of an error decides what happens after it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from node import log
from node.errors import (
    DamagedArtifact,
    EmptyResult,
    GeometryError,
    Incomplete,
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
    StepName,
    unsuitable,
)
from node.pipeline import BY_NAME
from node.ports import Leases

#: A worker that says nothing for this long is taken for dead, and its step is given to another.
LEASE_S = 30.0
_HEARTBEAT_S = LEASE_S / 3

#: So often the working data of one job are made again from Orthanc's copy.
_MAX_REMADE = 3

#: What is the series' own fault, and not the node's: a rule may want the hospital to be told.
_OF_THE_SERIES = (EmptyResult, GeometryError, UnsuitableInput, UnsupportedTransferSyntax)

StepFunction = Callable[[Job], Outcome]
Wake = Callable[[Job], None]


class Fault(Exception):
    """A defect of ours: recorded on the job, and raised so that the worker's log shows it.

    Carries the class and place of the original error, never its text, which may hold a patient's
    value.
    """


def run_step(
    job_id: str,
    name: StepName,
    *,
    ledger: Leases,
    steps: Mapping[StepName, StepFunction],
    wake: Wake,
) -> None:
    """Run the step if nobody else does, record what came of it, and wake what follows.

    Raises
    ------
    Fault
        The step failed in a way that it does not know; the job is marked failed.
    """
    job = ledger.claim(job_id, name, LEASE_S)
    if job is None:
        return
    logger = log.get().bind(job_id=job.id, step=str(name), attempt=job.attempt)
    try:
        with _kept_alive(ledger, job):
            outcome = steps[name](job)
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
        case Unavailable() if job.attempt < BY_NAME[job.step].max_attempts:
            ledger.wait(
                job, cause=cause, remedy=error.remedy, error=kind, delay_s=back_off_s(job.attempt)
            )
        case Unavailable():
            ledger.end(job, Event.ATTEMPTS_USED_UP, cause=cause, remedy=error.remedy, error=kind)
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
    return float(min(2 ** (attempt - 1), 900))


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
        case Routed(wishes):
            return ledger.fork(job, wishes)
        case HandedOver():
            return []
        case NotYet(reason, facts, delay_s):
            if delay_s is None and job.attempt >= BY_NAME[job.step].max_attempts:
                record_failure(ledger, job, reason)
                return []
            ledger.wait(
                job,
                cause=str(reason),
                remedy=reason.remedy,
                error=type(reason).__name__,
                delay_s=back_off_s(job.attempt) if delay_s is None else delay_s,
                facts=facts,
                counts=delay_s is None,
            )
            return []


@contextmanager
def _kept_alive(ledger: Leases, job: Job) -> Iterator[None]:
    """Extend the lease from a thread while the step runs."""
    stopped = threading.Event()

    def beat() -> None:
        while not stopped.wait(_HEARTBEAT_S):
            ledger.extend(job, LEASE_S)

    thread = threading.Thread(target=beat, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
