"""The lease of the step that runs: kept by a thread beside it, and looked at by the step itself."""

from __future__ import annotations

import threading
from collections.abc import Iterator
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
def kept_alive(ledger: Leases, job: Job, lease_s: float) -> Iterator[None]:
    """Extend the lease from a thread for as long as the step runs, at most until its deadline."""
    done, lost = threading.Event(), threading.Event()

    def beat() -> None:
        while not done.wait(lease_s / 4):
            try:
                if not ledger.extend(job, lease_s):
                    lost.set()
                    return
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
