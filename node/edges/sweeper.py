"""The sweeper: whatever a worker, the broker or a message took with it is found here, and goes on.

It looks every few moments, in a thread of its own, at what the ledger knows: leases that ran out,
and jobs that are due while the broker holds too few messages for them. It needs no memory and asks
neither Orthanc nor a PACS, so nothing that hangs there keeps it waiting.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from kombu.exceptions import OperationalError

from node import log
from node.edges.celery_app import wake_up_queue
from node.edges.ledger import Ledger
from node.errors import NodeError
from node.jobs import Step, StepName
from node.pipeline.run import Terms

#: More wake-ups than this at once serve nobody: each one that is taken brings the next.
_MOST_WAKES = 50


#: A clock that is adjusted by less between two sweeps is only being kept right.
_JUMP_S = 1.0


class Sweeper:
    """One sweep is ``once()``; ``run()`` repeats it until told to stop.

    Parameters
    ----------
    messages_in
        How many messages of a queue nobody has taken; OperationalError when nobody knows.
    wake
        One wake-up for a queue; OperationalError when the broker does not answer.
    """

    def __init__(
        self,
        ledger: Ledger,
        terms: Terms,
        messages_in: Callable[[str], int],
        wake: Callable[[str], None],
        steady_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger, self._terms = ledger, terms
        self._messages_in, self._wake = messages_in, wake
        self._steady_s = steady_s
        self._ahead_s: float | None = None  # the ledger's clock, of the steady one
        self._followed_at_s = 0.0  # by the steady one

    def once(self) -> None:
        """Keep what waits in the compute queue, release what nobody holds, wake what is due."""
        self._follow_clock()
        infer = self._terms.steps[StepName.INFER]
        try:
            self._keep_waiting_in_compute(infer)
        except OperationalError:
            log.get().warning("broker does not answer; trying again")
        for job in self._ledger.release_lost_leases(self._terms.steps):
            log.get().warning("lease ran out", job_id=job.id, step=str(job.step))
        try:
            self._send_missing_wakes()
        except OperationalError:  # one that fails is enough: each takes seconds to do so
            log.get().warning("broker does not answer; trying again")

    def run(self, stop: threading.Event, every_s: float) -> None:
        """Repeat until ``stop``; a ledger that does not answer is asked again."""
        while not stop.wait(every_s):
            try:
                self.once()
            except NodeError as error:
                log.get().warning("sweep failed", error=type(error).__name__)
            except Exception as error:  # noqa: BLE001 - nobody else would find what is lost
                log.get().error("sweep failed", error=type(error).__name__,
                                place=log.place_of(error))  # fmt: skip

    def _follow_clock(self) -> None:
        """A clock that was set, forward or back, must end no lease and no waiting."""
        steady_s = self._steady_s()
        ahead_s = self._ledger.database.clock() - steady_s
        jump_s = 0.0 if self._ahead_s is None else ahead_s - self._ahead_s
        if abs(jump_s) > _JUMP_S:
            log.get().warning("the clock was set", seconds=round(jump_s, 1))
            self._ledger.follow_clock(jump_s, self._terms.lease_s, steady_s - self._followed_at_s)
        # Not before: a ledger that does not answer has followed nothing.
        self._ahead_s, self._followed_at_s = ahead_s, steady_s

    def _keep_waiting_in_compute(self, infer: Step) -> None:
        waiting = self._ledger.waiting_in_compute()
        if waiting and self._messages_in(infer.queue) >= len(waiting):
            for job in waiting:
                self._ledger.extend(job, self._terms.lease_s)

    def _send_missing_wakes(self) -> None:
        woken: dict[str, int] = {}
        for queue in dict.fromkeys(step.queue for step in self._terms.steps.values()):
            steps = [step for step in self._terms.steps.values() if step.queue == queue]
            if due := self._ledger.due(steps, self._terms.at_most.get(queue)):
                woken[queue] = min(due, _MOST_WAKES)
        for name, wanted in woken.items():
            for _ in range(wanted - self._messages_in(wake_up_queue(name))):
                self._wake(name)
