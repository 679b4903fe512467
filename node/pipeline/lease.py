"""The lease of the step that runs: kept by a thread beside it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from node import log
from node.jobs import Job
from node.ports import Leases


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
    done = threading.Event()
    over_at = time.monotonic() + give_up_s

    def beat() -> None:
        kept = True
        while not done.wait(lease_s / 4):
            if time.monotonic() > over_at:
                log.get().error("step hangs", job_id=job.id, step=str(job.step))
                give_up()
                return
            if not kept:
                continue
            try:
                kept = ledger.extend(job, lease_s)
            except Exception as error:  # noqa: BLE001 - the next beat may get through
                log.get().warning("heartbeat failed", job_id=job.id, error=type(error).__name__)

    thread = threading.Thread(target=beat, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
