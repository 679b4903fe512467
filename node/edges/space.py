"""How full the disks get, and when: samples of their free space, kept for two weeks in one file."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from node.edges.orthanc_storage import Disk

_KEPT_S = 14 * 86400.0
#: Less than this says nothing about days to come.
_LEAST_SPAN_S = 3600.0
_DAY_S = 86400.0


@dataclass(frozen=True)
class Forecast:
    """What becomes of one disk if the days to come are as the days before.

    ``bytes_per_day`` counts what was written and not freed since; negative when more was freed.
    ``days_left`` until the node refuses what comes: 0 when it does already, None when the disk
    does not fill, or when there is nothing to judge by yet.
    """

    disk: Disk
    bytes_per_day: float | None
    days_left: float | None


class SpaceLog:
    """Samples of free space in a file: the watch adds to it, others read."""

    def __init__(self, file: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._file, self._clock = file, clock

    def add(self, disks: Sequence[Disk]) -> None:
        """Note how much is free now; forget what is older than two weeks."""
        now = self._clock()
        samples = [one for one in self._samples() if now - _KEPT_S <= one["at"] <= now]
        samples.append({"at": now, "free": {disk.folder: disk.free_bytes for disk in disks}})
        self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
        beside = self._file.with_name(f".{self._file.name}")
        beside.write_text(json.dumps(samples))
        beside.replace(self._file)

    def forecasts(self, disks: Sequence[Disk]) -> list[Forecast]:
        """When each disk has no more than it must keep free."""
        now, samples = self._clock(), self._samples()
        return [forecast(disk, now, _history(samples, disk)) for disk in disks]

    def _samples(self) -> list[dict[str, Any]]:
        try:
            return list(json.loads(self._file.read_text()))
        except (FileNotFoundError, ValueError):
            return []


def forecast(disk: Disk, now: float, history: Sequence[tuple[float, int]]) -> Forecast:
    """Draw a line from the oldest sample (seconds, bytes free) to ``disk`` as it is ``now``."""
    left = disk.free_bytes - disk.keep_free_bytes
    oldest = min(history, default=None)
    if oldest is None or now - oldest[0] < _LEAST_SPAN_S:
        return Forecast(disk, None, 0.0 if left < 0 else None)
    per_day = (oldest[1] - disk.free_bytes) / (now - oldest[0]) * _DAY_S
    if left < 0:
        return Forecast(disk, per_day, 0.0)
    return Forecast(disk, per_day, left / per_day if per_day > 0 else None)


def forecast_shown(one: Forecast) -> dict[str, Any]:
    """As the console takes it; the folder is none of a browser's business."""
    disk = asdict(one.disk)
    del disk["folder"]
    return {**disk, "bytes_per_day": one.bytes_per_day, "days_left": one.days_left}


def _history(samples: Sequence[dict[str, Any]], disk: Disk) -> list[tuple[float, int]]:
    return [(one["at"], one["free"][disk.folder]) for one in samples if disk.folder in one["free"]]
