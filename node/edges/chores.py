"""What the watch does beside its main work, seldom and without hurry, in a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from node import log
from node.errors import NodeError


@dataclass(frozen=True)
class Chore:
    """Something to do again and again, ``every_s`` seconds after it was done."""

    name: str
    every_s: float
    do: Callable[[], object]


class Chores:
    """Does each chore at once, and then when its time has come; one at a time."""

    def __init__(self, chores: Sequence[Chore]) -> None:
        self._due = dict.fromkeys(chores, 0.0)

    def start(self, stop: threading.Event) -> threading.Thread:
        """Begin in the background, until ``stop``."""
        thread = threading.Thread(target=self._run, args=(stop,), name="chores", daemon=True)
        thread.start()
        return thread

    def _run(self, stop: threading.Event) -> None:
        while not stop.wait(max(0.0, min(self._due.values()) - time.monotonic())):
            chore = min(self._due, key=self._due.__getitem__)
            _done(chore)
            self._due[chore] = time.monotonic() + chore.every_s


def _done(chore: Chore) -> None:
    try:
        chore.do()
    except NodeError as error:  # Orthanc is starting, a disk is full: the next time, then
        log.get().info("chore not done", chore=chore.name, error=type(error).__name__)
    except Exception as error:  # noqa: BLE001 - the others are still to be done
        place = log.place_of(error)
        log.get().error("chore failed", chore=chore.name, error=type(error).__name__, place=place)
