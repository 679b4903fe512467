"""What the watch does beside its main work, seldom and without hurry, in a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from node import log
from node.errors import NodeError

#: What could not be done is tried again after this long.
_AGAIN_S = 2.0


@dataclass(frozen=True)
class Chore:
    """Something to do again and again, ``every_s`` seconds after it was done.

    The first time ``first_s`` after the start.
    """

    name: str
    every_s: float
    do: Callable[[], object]
    first_s: float = 0.0


class Chores:
    """Does each chore when its time has come; one at a time."""

    def __init__(self, chores: Sequence[Chore]) -> None:
        self._due = {chore: time.monotonic() + chore.first_s for chore in chores}

    def start(self, stop: threading.Event) -> threading.Thread:
        """Begin in the background, until ``stop``."""
        thread = threading.Thread(target=self._run, args=(stop,), name="chores", daemon=True)
        thread.start()
        return thread

    def _run(self, stop: threading.Event) -> None:
        while not stop.wait(max(0.0, min(self._due.values()) - time.monotonic())):
            chore = min(self._due, key=self._due.__getitem__)
            pause_s = chore.every_s if _done(chore) else min(chore.every_s, _AGAIN_S)
            self._due[chore] = time.monotonic() + pause_s


def _done(chore: Chore) -> bool:
    try:
        chore.do()
    except NodeError as error:  # Orthanc is starting, a disk is full: the next time, then
        log.get().info("chore not done", chore=chore.name, error=type(error).__name__)
    except Exception as error:  # noqa: BLE001 - the others are still to be done
        place = log.place_of(error)
        log.get().error("chore failed", chore=chore.name, error=type(error).__name__, place=place)
    else:
        return True
    return False
