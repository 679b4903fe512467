"""When a disk will be full, and chores that nobody waits for."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from node.edges.chores import Chore, Chores
from node.edges.orthanc_storage import Disk
from node.edges.space import SpaceLog, forecast
from node.errors import OrthancUnavailable

GIB = 2**30
DAY_S = 86400.0


def disk(free_gib: float, keep_gib: float = 5) -> Disk:
    return Disk("/data", int(free_gib * GIB), 100 * GIB, int(keep_gib * GIB))


def test_a_disk_is_full_when_it_has_only_what_it_must_keep() -> None:
    """20 GiB in two days, 25 free, 5 of them kept: two days are left."""
    found = forecast(disk(25), 2 * DAY_S, [(0.0, 45 * GIB), (DAY_S, 30 * GIB)])
    assert found.bytes_per_day == pytest.approx(10 * GIB)
    assert found.days_left == pytest.approx(2)


def test_a_disk_that_gets_emptier_is_never_full() -> None:
    """Retention freed more than came."""
    found = forecast(disk(25), DAY_S, [(0.0, 20 * GIB)])
    assert found.bytes_per_day == pytest.approx(-5 * GIB)
    assert found.days_left is None


@pytest.mark.parametrize("history", [[], [(3000.0, 50 * GIB)]])
def test_an_hour_is_needed_for_a_forecast(history: list[tuple[float, int]]) -> None:
    """One study in the first minute would fill any disk within days."""
    assert forecast(disk(25), 3600.0, history).days_left is None


def test_a_full_disk_is_full_now() -> None:
    """With or without anything to judge by."""
    assert forecast(disk(4), 0.0, []).days_left == 0
    assert forecast(disk(4), DAY_S, [(0.0, 3 * GIB)]).days_left == 0


def test_samples_are_kept_for_two_weeks_and_survive_a_restart(tmp_path: Path) -> None:
    """A slow month does not hide a busy week."""
    now = [0.0]
    log = SpaceLog(tmp_path / "space.json", clock=lambda: now[0])
    log.add([disk(95)])
    now[0] = 10 * DAY_S
    log.add([disk(90)])
    now[0] = 20 * DAY_S
    SpaceLog(tmp_path / "space.json", clock=lambda: now[0]).add([disk(50)])
    (found,) = SpaceLog(tmp_path / "space.json", clock=lambda: now[0]).forecasts([disk(50)])
    assert found.bytes_per_day == pytest.approx(4 * GIB)


def test_a_chore_that_fails_is_done_again_and_holds_up_no_other() -> None:
    """Orthanc is still starting, say."""
    stop, done = threading.Event(), threading.Event()
    tries: list[str] = []

    def fails() -> None:
        tries.append("failed")
        if len(tries) < 3:
            raise OrthancUnavailable("not yet") if len(tries) == 1 else ZeroDivisionError
        done.set()

    others = threading.Event()
    thread = Chores([Chore("fails", 0.01, fails), Chore("other", 60.0, others.set)]).start(stop)
    assert done.wait(30)
    assert others.wait(30)
    stop.set()
    thread.join(30)
    assert not thread.is_alive()
