"""Thin Celery tasks of the hospital zone: run a step, hand a model's run over, hear how it went.

Between the zones go the id of a job, which is also the folder of its artifacts, the digest of its
instances, the name and digest of a model, and how it went (``node.edges.compute`` is the other
side).
"""

from __future__ import annotations

from collections.abc import Mapping

from celery import Celery
from kombu.exceptions import OperationalError

from node import errors, log
from node.edges.celery_app import (
    COMPUTE_QUEUE,
    INFER,
    INFER_ALIVE,
    INFER_DONE,
    INFER_FAILED,
    RUN_STEP,
)
from node.edges.ledger import Ledger
from node.errors import NodeError
from node.jobs import HandedOver, Job, State, StepName
from node.pipeline import BY_NAME
from node.pipeline.run import LEASE_S, StepFunction, Wake, record_failure, run_step
from node.pipeline.working_data import INSTANCES, LABEL_MAP, is_digest

#: A model that waits in the compute queue for this long is sent again: the message may be lost.
_QUEUED_LEASE_S = 600.0
_COMPUTE_HEARTBEAT_S = 5.0


def waker(app: Celery, ledger: Ledger) -> Wake:
    """Send the wake-up of a job's step to the queue that stands beside the step."""

    def wake(job: Job) -> None:
        # Where the model runs elsewhere, what the hospital does of `infer` is sending a message.
        queue = BY_NAME[job.step].queue
        queue = "io" if queue == COMPUTE_QUEUE else queue
        try:
            app.send_task(RUN_STEP, args=[job.id, str(job.step)], queue=queue, retry=False)
        except OperationalError:
            log.get().warning("broker does not answer; the sweeper sends it again", job_id=job.id)
            return
        ledger.mark_sent([job])

    return wake


def hand_over(app: Celery, ledger: Ledger) -> StepFunction:
    """``infer`` as the hospital zone does it: name the artifacts to the compute zone."""

    def infer(job: Job) -> HandedOver:
        ledger.extend(job, _QUEUED_LEASE_S)
        instances = job.facts.get(INSTANCES, "")
        message = [job.id, job.attempt, instances, job.model, job.model_digest]
        try:
            app.send_task(INFER, args=message, queue=COMPUTE_QUEUE, retry=False)
        except OperationalError:
            raise errors.Unavailable("The broker does not answer") from None
        return HandedOver()

    return infer


def register_hospital_tasks(
    app: Celery, ledger: Ledger, steps: Mapping[StepName, StepFunction], wake: Wake
) -> None:
    """The tasks of the hospital zone."""

    @app.task(name=RUN_STEP)  # type: ignore[untyped-decorator]
    def run_step_task(job_id: str, step: str) -> None:
        run_step(job_id, StepName(step), ledger=ledger, steps=steps, wake=wake)

    def running(job_id: str, attempt: int | None = None) -> Job | None:
        job = ledger.job(job_id)
        if job is None or job.step is not StepName.INFER or job.state is not State.RUNNING:
            return None
        return job if attempt in (None, job.attempt) else None

    @app.task(name=INFER_ALIVE)  # type: ignore[untyped-decorator]
    def infer_alive(job_id: str, attempt: int, progress: float) -> None:
        if job := running(job_id, attempt):
            ledger.extend(job, LEASE_S, max(progress, 0.001))

    @app.task(name=INFER_DONE)  # type: ignore[untyped-decorator]
    def infer_done(job_id: str, label_map_digest: str) -> None:
        # Any attempt's result will do: its digest leads to what was made of the job's instances, or
        # nowhere. Everything else that is known of the job is the hospital's alone to state: where
        # its results go, whose they are.
        job = running(job_id) if is_digest(label_map_digest) else None
        following = ledger.finish(job, {LABEL_MAP: label_map_digest}) if job else None
        if following:
            wake(following)

    @app.task(name=INFER_FAILED)  # type: ignore[untyped-decorator]
    def infer_failed(job_id: str, attempt: int, kind: str, cause: str, remedy: str) -> None:
        if job := running(job_id, attempt):
            record_failure(ledger, job, _error_named(kind)(cause, remedy=remedy))


def _error_named(kind: str) -> type[NodeError]:
    found = getattr(errors, kind, NodeError)
    return found if isinstance(found, type) and issubclass(found, NodeError) else NodeError
