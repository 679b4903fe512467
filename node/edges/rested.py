"""A destination that hangs is left alone for a while, by every job of this process.

A PACS that is down says so at once. One that hangs costs its whole timeout, and with many jobs for
it all workers would stand there while other destinations wait.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from node.errors import PacsUnavailable
from node.ports import Pacs, StoreStatus

#: What fails faster costs nobody anything.
_SLOW_S = 8.0
#: A hanging destination costs a worker a quarter of its time at most.
_REST_PER_SECOND = 3.0


class Rested:
    """``node.ports.Pacs`` over another one: after a slow failure it fails at once for a while."""

    def __init__(
        self, name: str, pacs: Pacs, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._name, self._pacs, self._clock = name, pacs, clock
        self._until = float("-inf")
        self._lock = threading.Lock()

    def echo(self) -> None:
        """As the destination does; a person asks, so it is asked."""
        self._pacs.echo()

    def store(self, instances: Sequence[bytes]) -> tuple[StoreStatus, ...]:
        """As the destination does."""
        with self._unless_it_rests() as began:
            statuses = self._pacs.store(instances)
            if any(status.status is None for status in statuses):
                self._failed(began)
            return statuses

    def find_instances(self, study_instance_uid: str, series_instance_uid: str) -> frozenset[str]:
        """As the destination does."""
        with self._unless_it_rests():
            return self._pacs.find_instances(study_instance_uid, series_instance_uid)

    @contextmanager
    def _unless_it_rests(self) -> Iterator[float]:
        began = self._clock()
        left = self._until - began
        if left > 0:
            raise PacsUnavailable(
                f"{self._name} has just not answered in time, and is left alone for a while",
                retry_after_s=left,
            )
        try:
            yield began
        except PacsUnavailable:
            self._failed(began)
            raise

    def _failed(self, began: float) -> None:
        now = self._clock()
        if now - began >= _SLOW_S:
            with self._lock:
                self._until = max(self._until, now + (now - began) * _REST_PER_SECOND)
