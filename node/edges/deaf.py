"""A worker that takes nothing although messages wait for it: it is ended, and so started again.

Celery's event loop has stood still after a lost connection before (one cause: see
``broker_transport_options`` in :mod:`node.edges.celery_app`). Celery does not notice that, and the
messages that wait look like work in good hands.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable
from typing import Any

from celery.signals import worker_ready
from kombu.exceptions import OperationalError

from node import log

#: A worker with a free process takes a message within milliseconds.
_LOOKS, _EVERY_S = 20, 1.0


def end_when_deaf(
    queues: Iterable[str], messages_in: Callable[[str], int], every_s: float = _EVERY_S
) -> None:
    """Have the worker of this process watched from the moment when it is ready.

    ``messages_in`` as :func:`node.edges.celery_app.message_counter` gives it.
    """

    def watch(sender: Any, **_: object) -> None:
        from celery.worker import state

        def idle() -> bool:
            return not state.active_requests

        def taken() -> int:
            return sum(state.total_count.values())

        arguments = (tuple(queues), messages_in, idle, taken, sender.hub.call_soon, every_s)
        threading.Thread(target=_watch, args=arguments, name="hearing", daemon=True).start()

    worker_ready.connect(watch, weak=False)


def _watch(
    queues: Iterable[str],
    messages_in: Callable[[str], int],
    idle: Callable[[], bool],
    taken: Callable[[], int],
    call_soon: Callable[[Callable[[], None]], object],
    every_s: float,
) -> None:
    # Looks are counted, not seconds: who was stopped for a while has not looked.
    pause, missed, before = threading.Event(), 0, taken()
    while missed < _LOOKS:
        loop_runs = threading.Event()
        call_soon(loop_runs.set)
        pause.wait(every_s)
        try:
            waits = any(messages_in(queue) for queue in queues)
        except OperationalError:
            waits = False
        now = taken()
        # A loop that stands still knows of no task that it is done.
        free = idle() or not loop_runs.is_set()
        missed = missed + 1 if waits and free and now == before else 0
        before = now
    log.get().error("the worker takes no messages; it ends and is started again")
    # As a worker that was killed: its pool children end, and its steps are begun again.
    os.kill(os.getpid(), signal.SIGKILL)
