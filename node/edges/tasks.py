"""Thin Celery tasks of the hospital zone: run a step, hand a model's run over, hear how it went.

A wake-up names a queue and nothing else: the ledger says which job's turn it is. To the compute
zone go the id of a job, which is also the folder of its artifacts, the digest of its instances, the
name and digest of a model; how it went comes back as news (``node.edges.compute_news``).
"""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Mapping
from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError

from node import errors, log
from node.edges.celery_app import COMPUTE_QUEUE, INFER, RUN_NEXT, send, wake_up_queue
from node.edges.compute_news import ALIVE, DONE, FAILED
from node.edges.ledger import Ledger
from node.errors import NodeError
from node.jobs import HandedOver, Job, State, StepName
from node.pipeline import BY_NAME
from node.pipeline.run import StepFunction, Terms, Wake, record_failure, run_next
from node.pipeline.working_data import INSTANCES, LABEL_MAP, is_digest
from node.words import fit_to_show

#: After its deadline a step loses its lease, and its process ends itself. Where not even that goes
#: (a library that never lets go of the interpreter), Celery kills it after so much longer.
_KILL_AFTER_S = 30.0
#: Characters of a cause or a remedy: the last words of a program, and a sentence around them.
_MOST_WORDS = 800
#: What ``infer`` raises. Every other class is decided upon by the hospital alone.
_OF_INFER = (
    errors.DamagedArtifact,
    errors.DamagedInstance,
    errors.EmptyResult,
    errors.GeometryError,
    errors.ModelFault,
    errors.OutOfSpace,
    errors.ProgramFailed,
    errors.ProgramInterrupted,
    errors.Unavailable,
    errors.UnsuitableInput,
    errors.UnsupportedTransferSyntax,
)


def wake_queue(app: Celery, terms: Terms, queue: str) -> None:
    """One wake-up for a queue.

    Raises
    ------
    OperationalError
        The broker does not answer.
    """
    limit_s = max(step.deadline_s for step in terms.steps.values() if step.queue == queue)
    send(app, RUN_NEXT, [queue], wake_up_queue(queue), limit_s + _KILL_AFTER_S)


def end_process() -> None:
    """End this pool process at once, in the middle of what it does; Celery starts another."""
    os.kill(os.getpid(), signal.SIGKILL)


def waker(app: Celery, terms: Terms) -> Wake:
    """Send the wake-up of a job's step to the queue that stands beside the step."""

    def wake(job: Job) -> None:
        try:
            wake_queue(app, terms, BY_NAME[job.step].queue)
        except OperationalError:
            log.get().warning("broker does not answer; the sweeper sends it again", job_id=job.id)

    return wake


def hand_over(app: Celery, ledger: Ledger, terms: Terms) -> StepFunction:
    """``infer`` as the hospital zone does it: name the artifacts to the compute zone."""
    step = terms.steps[StepName.INFER]

    def infer(job: Job) -> HandedOver:
        instances = job.facts.get(INSTANCES, "")
        message = [job.id, job.lease, instances, job.model, job.model_digest]
        ledger.handed_over(job, step.patience_s)
        try:
            send(app, INFER, message, COMPUTE_QUEUE, step.deadline_s + terms.lease_s)
        except OperationalError:
            raise errors.Unavailable("The broker does not answer") from None
        return HandedOver()

    return infer


def register_hospital_tasks(
    app: Celery,
    ledger: Ledger,
    steps: Mapping[StepName, StepFunction],
    wake: Wake,
    terms: Terms,
) -> None:
    """The one task of the hospital zone."""

    @app.task(name=RUN_NEXT)  # type: ignore[untyped-decorator]
    def run_next_task(queue: str) -> None:
        run_next(queue, ledger=ledger, steps=steps, wake=wake, terms=terms)


def compute_news(
    ledger: Ledger, wake: Wake, more_for_compute: Callable[[], None], terms: Terms
) -> Callable[[Mapping[str, Any]], None]:
    """What the hospital zone does when it hears of a model's run.

    ``more_for_compute`` is called when the compute zone has become free for another job.
    """
    step = terms.steps[StepName.INFER]

    def heard(news: Mapping[str, Any]) -> None:
        job = ledger.job(str(news["job_id"]))
        if job is None or job.step is not StepName.INFER or job.state is not State.RUNNING:
            return
        kind, ours = news["kind"], news["attempt"] == job.lease
        if kind == ALIVE and ours:
            if job.progress == 0:
                ledger.started(job, step.deadline_s)
            ledger.extend(job, terms.lease_s, _share(float(news["progress"])))
        elif kind == DONE:
            # Any attempt's result will do: its digest leads to what was made of the job's
            # instances, or nowhere. Everything else that is known of the job is the hospital's
            # alone to state: where its results go, whose they are.
            found = news["label_map"]
            following = ledger.finish(job, {LABEL_MAP: found}) if is_digest(found) else None
            if following:
                wake(following)
            more_for_compute()
        elif kind == FAILED and ours:
            record_failure(ledger, job, _failure(news))
            more_for_compute()

    return heard


def _share(progress: float) -> float:
    """The share done, above 0: that would say that no worker has begun."""
    return min(max(progress, 0.001), 1.0) if math.isfinite(progress) else 0.001


def _failure(news: Mapping[str, Any]) -> NodeError:
    """What the compute zone says why there is no label map: models of others may speak through it.

    Its class decides what becomes of the job, its words go to a person and a PACS.
    """
    known = {error.__name__: error for error in _OF_INFER}
    kind = known.get(str(news["error"]), NodeError)
    # Cut before, too: whoever sends books costs no time.
    cause, remedy = (
        fit_to_show(str(news[name])[: 4 * _MOST_WORDS])[:_MOST_WORDS]
        for name in ("cause", "remedy")
    )
    return kind(cause, remedy=remedy)
