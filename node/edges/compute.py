"""The one Celery task of the compute zone: run a model over artifacts, and say how it went.

Nothing of the hospital zone is imported here: no ledger, no vault, no Orthanc, no PACS.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from celery import Celery

from node import log
from node.edges.celery_app import INFER
from node.edges.compute_news import ALIVE, DONE, FAILED, tell
from node.errors import NodeError

_HEARTBEAT_S = 2.0


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
            _failed(app, job_id, attempt, type(error).__name__, str(error), error.remedy)
        except Exception as error:  # noqa: BLE001 - scrubbed; the hospital zone records it
            place = log.place_of(error)
            logger.error("step failed", error=type(error).__name__, place=place)
            _failed(
                app, job_id, attempt, "NodeError",
                f"Unexpected {type(error).__name__} at {place}",
                "Report this line as a defect of the model or of segnode, then retry the job.",
            )  # fmt: skip
        else:
            logger.info("step done")
            tell(app, DONE, job_id, attempt, label_map=digest)


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
            try:
                tell(self._app, ALIVE, self._job_id, self._attempt, progress=self._progress)
            except Exception as error:  # noqa: BLE001 - the next beat may get through
                log.get().error("heartbeat failed", job_id=self._job_id,
                                error=type(error).__name__, place=log.place_of(error))  # fmt: skip
            wait_s = 1.0 if wait_s == 0.0 else min(wait_s * 1.5, _HEARTBEAT_S)


def _failed(app: Celery, job_id: str, attempt: int, error: str, cause: str, remedy: str) -> None:
    tell(app, FAILED, job_id, attempt, error=error, cause=cause, remedy=remedy)
