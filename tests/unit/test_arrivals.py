"""The quiet timer, what is learned of senders, and who may still be sending."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.doctor import senders
from node.edges.arrivals import (
    Arrival,
    Arrivals,
    Cursor,
    Origin,
    mark_quiet,
    settle_s,
    still_sending,
)
from node.edges.database import Database
from node.settings import Settings
from node.wiring import Hospital
from tests.ledger_case import Clock

CT = Origin("CT1", "10.0.0.5")


@pytest.fixture
def database(database_url: str, clock: Clock) -> Database:
    return Database(database_url, clock=clock)


@pytest.fixture
def arrivals(database: Database) -> Arrivals:
    return Arrivals(database)


def silent_s(arrivals: Arrivals) -> dict[str, float]:
    return {one.series_id: one.silent_s for one in arrivals.waiting()}


def test_an_arrival_restarts_the_timer_and_moves_the_cursor(
    arrivals: Arrivals, clock: Clock
) -> None:
    """Both in one transaction, on either database."""
    assert arrivals.cursor("feed") == Cursor()
    arrivals.record("feed", Cursor(7, "NewInstance a"), {"series": CT})
    clock.now += 5
    arrivals.record("feed", Cursor(9, "NewInstance b"), {"series": None})
    clock.now += 9
    assert silent_s(arrivals) == {"series": 9}
    assert arrivals.waiting()[0].origin == CT
    assert arrivals.cursor("feed") == Cursor(9, "NewInstance b")
    assert arrivals.known(["series", "other"]) == {"series"}


def test_what_arrived_since_the_timer_was_read_is_looked_at_again(
    arrivals: Arrivals, database: Database, clock: Clock
) -> None:
    """A series is quiet as of a time: it does not become so for what came afterwards."""
    arrivals.record("feed", Cursor(1), {"series": CT})
    [seen] = arrivals.waiting()
    clock.now += 1
    arrivals.record("feed", Cursor(2), {"series": None})
    with database.transaction() as tx:
        mark_quiet(tx, "series", seen.last_change_at)
    [again] = arrivals.waiting()
    with database.transaction() as tx:
        mark_quiet(tx, "series", again.last_change_at)
    assert arrivals.waiting() == []


def paused(arrivals: Arrivals, clock: Clock, series: str, pause_s: float) -> None:
    """Two instances of a series with a pause in between, the feed being read all the time."""
    arrivals.record("feed", Cursor(1), {series: CT}, seen_at=clock.now, longest_s=100)
    seen_at = clock.now + pause_s
    clock.now = seen_at + 1
    arrivals.record("feed", Cursor(1), {series: None}, seen_at=seen_at, longest_s=100)


def test_a_pause_that_a_sender_makes_twice_is_waited_for(arrivals: Arrivals, clock: Clock) -> None:
    """Once is an accident; a late instance that nobody would wait for teaches nothing."""
    paused(arrivals, clock, "a", 20)
    assert arrivals.pauses_s() == {"CT1": 0.0}
    paused(arrivals, clock, "b", 500)
    assert arrivals.pauses_s() == {"CT1": 0.0}
    paused(arrivals, clock, "c", 15)
    assert arrivals.pauses_s() == {"CT1": 15.0}
    paused(arrivals, clock, "d", 30)
    assert arrivals.pauses_s() == {"CT1": 20.0}


def test_the_nodes_own_sleep_is_no_pause_of_a_sender(arrivals: Arrivals, clock: Clock) -> None:
    """Nobody read the feed for a minute: instances may have come all the time."""
    for series in ("a", "b"):
        arrivals.record("feed", Cursor(1), {series: CT}, seen_at=clock.now, longest_s=100)
        seen_at = clock.now
        clock.now += 60
        arrivals.record("feed", Cursor(2), {series: None}, seen_at=seen_at, longest_s=100)
        arrivals.record("feed", Cursor(3), {series: None}, seen_at=None, longest_s=100)
    assert arrivals.pauses_s() == {}


def test_a_habit_is_forgotten_after_a_month(arrivals: Arrivals, clock: Clock) -> None:
    """The modality was replaced; its successor pauses for less."""
    paused(arrivals, clock, "a", 40)
    paused(arrivals, clock, "b", 40)
    assert arrivals.pauses_s() == {"CT1": 40.0}
    clock.now += 31 * 86_400
    assert arrivals.pauses_s() == {}, "although it has not paused since"
    paused(arrivals, clock, "c", 3)
    paused(arrivals, clock, "d", 4)
    assert arrivals.pauses_s() == {"CT1": 3.0}


@pytest.mark.parametrize(("pause_s", "wanted_s"), [(0, 10), (5, 10), (20, 30), (90, 120)], ids=str)
def test_the_settle_time_has_limits(pause_s: float, wanted_s: float) -> None:
    """Never shorter than the site wants, never longer than it bears."""
    assert settle_s(pause_s, 10, 120) == wanted_s


def test_the_doctor_tells_who_is_waited_for_longer(tmp_path: Path) -> None:
    """A person can see why the series of one sender begin later than those of another."""
    hospital = Hospital(Settings(var_dir=tmp_path))
    arrivals = Arrivals(hospital.ledger.database)
    for series in ("a", "b"):
        arrivals.record("feed", Cursor(1), {series: CT})
        [seen] = [one for one in arrivals.waiting() if one.series_id == series]
        seen_at = seen.last_change_at + 40
        arrivals.record("feed", Cursor(1), {series: None}, seen_at=seen_at, longest_s=120)
    [found] = senders(hospital)
    assert found.subject == "sender CT1"
    assert found.found == "pauses for 40 s within a series: waited for 60 s"


def arrival(series: str, silent: float, address: str = "10.0.0.5") -> Arrival:
    return Arrival(series, 0.0, Origin("CT1", address), silent)


def test_an_open_association_may_be_in_the_middle_of_a_series() -> None:
    """Whether it is depends on what else it sends."""
    pausing, other = arrival("a", 20), arrival("b", 1)
    assert still_sending(pausing, [pausing], 1)
    assert not still_sending(pausing, [pausing], 0)
    assert not still_sending(pausing, [pausing, other], 1), "the association has moved on"
    assert still_sending(pausing, [pausing, other], 2), "one of the two may come back to it"
    elsewhere = arrival("c", 1, address="10.0.0.6")
    assert still_sending(pausing, [pausing, elsewhere], 1)
