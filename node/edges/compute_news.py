"""What the compute zone tells the hospital zone: a model runs, is done, or has failed.

These are no tasks: a task would wait behind steps that take minutes, and a model that runs well
would be taken for dead meanwhile. They go through a queue of their own, to the sweeper's process,
which does nothing that takes long. What is lost on the way is missed by the sweeper.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from queue import Empty
from typing import Any

from celery import Celery
from kombu.connection import Connection
from kombu.exceptions import OperationalError
from kombu.simple import SimpleQueue

from node import log
from node.errors import Unavailable

NEWS_QUEUE = "news"

ALIVE = "alive"
DONE = "done"
FAILED = "failed"


#: How a run ended is told for so long to a broker that does not answer: the lease has run out by
#: then, and nobody else runs anything without a broker.
_HOW_IT_ENDED_S = 60.0


def tell(app: Celery, kind: str, job_id: str, attempt: int, **more: object) -> None:
    """Send one message. Without a broker a sign of life is lost, and an end is sent later."""
    news = {"kind": kind, "job_id": job_id, "attempt": attempt, **more}
    until = time.monotonic() + (0.0 if kind == ALIVE else _HOW_IT_ENDED_S)
    while not _sent(app, news):
        if time.monotonic() > until:
            log.get().warning("broker does not answer; the lease will run out", job_id=job_id)
            return
        time.sleep(0.5)


def _sent(app: Celery, news: Mapping[str, object]) -> bool:
    connection = app.connection_for_write()
    try:
        with connection, connection.SimpleQueue(NEWS_QUEUE, serializer="json") as queue:
            queue.put(news)
    # kombu's own error stands for a broker that could not be reached at all.
    except (OperationalError, *connection.connection_errors, *connection.channel_errors):
        return False
    return True


def listen(app: Celery, heard: Callable[[Mapping[str, Any]], None], stop: threading.Event) -> None:
    """Call ``heard`` with each message until ``stop``. A broker that is away is waited for."""
    while not stop.is_set():
        connection = app.connection_for_read()
        try:
            with connection, _queue(connection) as queue:
                while not stop.is_set():
                    with suppress(Empty):
                        _hear(heard, queue.get(timeout=1.0).payload, stop)
        except (OperationalError, *connection.connection_errors, *connection.channel_errors):
            stop.wait(1.0)
        except Exception as error:  # noqa: BLE001 - one bad message must not deafen the node
            log.get().error("news not understood", error=type(error).__name__,
                            place=log.place_of(error))  # fmt: skip
            stop.wait(0.1)


def _hear(
    heard: Callable[[Mapping[str, Any]], None], news: Mapping[str, Any], stop: threading.Event
) -> None:
    """Once the message is taken, nobody else has it: a ledger that is away is waited for."""
    while not stop.is_set():
        try:
            heard(news)
            return
        except Unavailable as error:
            log.get().warning("news cannot be noted; trying again", error=type(error).__name__)
            stop.wait(1.0)


def _queue(connection: Connection) -> SimpleQueue:
    queue: SimpleQueue = connection.SimpleQueue(  # type: ignore[no-untyped-call]
        NEWS_QUEUE, no_ack=True, accept=["json"]
    )
    return queue
