"""A ledger's jobs, brought where a test needs them, and a clock that the test moves."""

from __future__ import annotations

from dataclasses import dataclass

from node.edges.ledger import Ledger
from node.jobs import Job, StepName, Wish
from node.pipeline import BY_NAME
from node.pipeline.run import StepFunction, Terms, Wake, run_next

LUNGS = Wish("chest", "v1", "ct_lungs", "digest-1", ("sender",))
AIRWAYS = Wish("airways", "v1", "ct_airways", "digest-2", ("sender",))


@dataclass
class Clock:
    """A clock that the test moves."""

    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def opened(ledger: Ledger, *instances: str) -> Job:
    """A new job of these instances."""
    job = ledger.open_jobs("series", "study", instances or ("a", "b"))
    assert job is not None
    return job


def claim(ledger: Ledger, job: Job, lease_s: float = 30) -> Job | None:
    """The job as a worker holds it, whose turn it is at its step; None when it is not due."""
    held = ledger.claim_next([BY_NAME[job.step]], lease_s)
    assert held is None or held.id == job.id, "it was the turn of another job"
    return held


def claimed(ledger: Ledger, job: Job, lease_s: float = 30) -> Job:
    """The job as a worker holds it."""
    held = claim(ledger, job, lease_s)
    assert held is not None
    return held


def at_step(ledger: Ledger, step: StepName, series: str = "series", wish: Wish = LUNGS) -> Job:
    """A job of its own series and study that has come this far."""
    study = "study" if series == "series" else f"study of {series}"
    job = ledger.open_jobs(series, study, ("a", "b"))
    assert job is not None
    while job.step is not step:
        held = claimed(ledger, job)
        if job.step is StepName.ROUTE:
            [job] = ledger.fork(held, [wish])
        else:
            job = ledger.finish(held, {}) or job
    return job


def nobody(_: Job) -> None:
    """Nobody is to be woken: the test runs the steps."""


def run_step(ledger: Ledger, job: Job, step: StepFunction, wake: Wake = nobody) -> None:
    """Run ``step`` as the one that is due of ``job``, and record what came of it."""
    due = BY_NAME[job.step]
    terms = Terms(steps={due.name: due})
    run_next(due.queue, ledger=ledger, steps={due.name: step}, wake=wake, terms=terms)
