"""The lease of the step that runs: kept by a thread beside it, and looked at by the step itself."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from node import log
from node.errors import LeaseLost
from node.jobs import Job
from node.ports import Leases

_LOST: ContextVar[threading.Event | None] = ContextVar("lease_lost", default=None)


def stop_if_lost() -> None:
    """Called by a step before it does what cannot be undone, such as sending.

    Raises
    ------
    LeaseLost
        Its lease ran out, its deadline has passed, or a person has stopped the job.
    """
    lost = _LOST.get()
    if lost is not None and lost.is_set():
        raise LeaseLost("Another worker has this step by now, or nobody")


@contextmanager
def kept_alive(
    ledger: Leases,
    job: Job,
    lease_s: float,
    give_up_s: float = math.inf,
    give_up: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Extend the lease from a thread for as long as the step runs, at most until its deadline.

    A step that runs for ``give_up_s`` has overstayed its deadline and does not listen: ``give_up``
    is called, which ends its process.
    """
    done, lost = threading.Event(), threading.Event()
    over_at = time.monotonic() + give_up_s

    def beat() -> None:
        while not done.wait(lease_s / 4):
            if time.monotonic() > over_at:
                log.get().error("step hangs", job_id=job.id, step=str(job.step))
                give_up()
                return
            if lost.is_set():
                continue
            try:
                if not ledger.extend(job, lease_s):
                    lost.set()
            except Exception as error:  # noqa: BLE001 - the next beat may get through
                log.get().warning("heartbeat failed", job_id=job.id, error=type(error).__name__)

    thread = threading.Thread(target=beat, name="lease", daemon=True)
    token = _LOST.set(lost)
    thread.start()
    try:
        yield
    finally:
        _LOST.reset(token)
        done.set()
        thread.join()
