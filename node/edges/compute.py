"""The one Celery task of the compute zone: run a model over artifacts, and say how it went.

Nothing of the hospital zone is imported here: no ledger, no vault, no Orthanc, no PACS.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from celery import Celery
from kombu.exceptions import OperationalError

from node import log
from node.edges.celery_app import INFER, INFER_ALIVE, INFER_DONE, INFER_FAILED
from node.errors import NodeError

_HEARTBEAT_S = 5.0


def register_compute_task(
    app: Celery, infer: Callable[[str, str, str, str, Callable[[float], None]], str]
) -> None:
    """The one task of the compute zone.

    Parameters
    ----------
    infer
        ``infer(job_id, instances_digest, model, model_digest, report)``: reads and writes artifacts
        of the job; the digest of what it has left.
    """

    @app.task(name=INFER)  # type: ignore[untyped-decorator]
    def infer_task(
        job_id: str, attempt: int, instances_digest: str, model: str, model_digest: str
    ) -> None:
        logger = log.get().bind(job_id=job_id, attempt=attempt, step="infer", model=model)
        try:
            with _Heartbeat(app, job_id, attempt) as heartbeat:
                digest = infer(job_id, instances_digest, model, model_digest, heartbeat.report)
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
            _tell(app, INFER_DONE, job_id, digest)


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
            wait_s = 1.0 if wait_s == 0.0 else min(wait_s * 1.5, _HEARTBEAT_S)


def _tell(app: Celery, task: str, *args: object) -> None:
    try:
        app.send_task(task, args=args, queue="io", retry=False)
    except OperationalError:
        log.get().warning("broker does not answer; the lease will run out")
