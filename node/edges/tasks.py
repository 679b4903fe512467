"""Thin Celery tasks: the hospital zone runs steps, the compute zone runs a model.

Neither zone imports the other's packages: ``hospital_app`` is made where the ledger is,
``compute_app`` where torch is. Between them go the id of a job, the folder of its artifacts, the
name of a model, and how it went.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

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
from node.jobs import Done, HandedOver, Job, State, StepName
from node.pipeline import BY_NAME
from node.pipeline.run import LEASE_S, StepFunction, Wake, record_failure, run_step

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
        message = [job.id, job.attempt, job.model, job.model_digest]
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
    def infer_done(job_id: str, facts: dict[str, Any]) -> None:
        # Any attempt's result will do: the label map is the same, and it is there.
        job = running(job_id)
        following = ledger.finish(job, facts) if job else None
        if following:
            wake(following)

    @app.task(name=INFER_FAILED)  # type: ignore[untyped-decorator]
    def infer_failed(job_id: str, attempt: int, kind: str, cause: str, remedy: str) -> None:
        if job := running(job_id, attempt):
            record_failure(ledger, job, _error_named(kind)(cause, remedy=remedy))


def register_compute_task(
    app: Celery, infer: Callable[[str, str, str, Callable[[float], None]], Done]
) -> None:
    """The one task of the compute zone.

    Parameters
    ----------
    infer
        ``infer(folder, model, model_digest, report)``: reads and writes artifacts of ``folder``.
    """

    @app.task(name=INFER)  # type: ignore[untyped-decorator]
    def infer_task(job_id: str, attempt: int, model: str, model_digest: str) -> None:
        logger = log.get().bind(job_id=job_id, attempt=attempt, step="infer", model=model)
        try:
            with _Heartbeat(app, job_id, attempt) as heartbeat:
                done = infer(job_id, model, model_digest, heartbeat.report)
        except NodeError as error:
            logger.warning("step stopped", error=type(error).__name__)
            _tell(
                app, INFER_FAILED, job_id, attempt, type(error).__name__, str(error), error.remedy
            )
        except Exception as error:  # noqa: BLE001 - scrubbed; the hospital zone records it
            place = log.place_of(error)
            logger.error("step failed", error=type(error).__name__, place=place)
            told = (
                "NodeError",
                f"Unexpected {type(error).__name__} at {place}",
                "Report this line as a defect of the model or of segnode, then retry the job.",
            )
            _tell(app, INFER_FAILED, job_id, attempt, *told)
        else:
            logger.info("step done")
            _tell(app, INFER_DONE, job_id, dict(done.facts))


class _Heartbeat:
    """Tells the hospital zone that the model is alive and how far it has come."""

    def __init__(self, app: Celery, job_id: str, attempt: int) -> None:
        self._app, self._job_id, self._attempt = app, job_id, attempt
        self._progress = 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def report(self, progress: float) -> None:
        self._progress = progress

    def __enter__(self) -> _Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _beat(self) -> None:
        wait_s = 0.0
        while not self._stopped.wait(wait_s):
            _tell(self._app, INFER_ALIVE, self._job_id, self._attempt, self._progress)
            wait_s = 1.0 if wait_s == 0.0 else min(wait_s * 1.5, _COMPUTE_HEARTBEAT_S)


def _tell(app: Celery, task: str, *args: object) -> None:
    try:
        app.send_task(task, args=args, queue="io", retry=False)
    except OperationalError:
        log.get().warning("broker does not answer; the lease will run out")


def _error_named(kind: str) -> type[NodeError]:
    found = getattr(errors, kind, NodeError)
    return found if isinstance(found, type) and issubclass(found, NodeError) else NodeError
