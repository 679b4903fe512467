"""What has arrived and how long ago: the feed's cursor, the quiet timer, the senders' habits."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from node.edges.database import Database, upsert
from node.edges.ledger_tables import ARRIVALS, CURSORS, JOBS, SENDERS
from node.errors import Gone
from node.jobs import State

_IN_ONE_QUERY = 500
#: A pause is remembered for so long: what a sender did last year says nothing.
_REMEMBERED_S = 30 * 86_400.0
#: Half as long again as the pause that a sender has shown.
_MARGIN = 1.5


@dataclass(frozen=True)
class Cursor:
    """How far a feed was read; ``line`` is what stood there, empty when that is not known."""

    value: int = 0
    line: str = ""


@dataclass(frozen=True)
class Origin:
    """Who sent a series, and from where; both empty for HTTP."""

    sender: str = ""
    address: str = ""


@dataclass(frozen=True)
class Arrival:
    """A series of which no job has been made since it last received something."""

    series_id: str
    last_change_at: float
    origin: Origin
    silent_s: float


class Arrivals:
    """Series that received something, in the same database as the ledger."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def cursor(self, name: str) -> Cursor:
        """How far a feed was read; 0 when it never was."""
        query = sa.select(CURSORS.c.value, CURSORS.c.line).where(CURSORS.c.name == name)
        with self._database.transaction() as tx:
            row = tx.execute(query).one_or_none()
        return Cursor(int(row.value), row.line) if row else Cursor()

    def known(self, series_ids: Collection[str]) -> set[str]:
        """Those of the series that have arrived before."""
        query = sa.select(ARRIVALS.c.series_id)
        if len(series_ids) <= _IN_ONE_QUERY:
            query = query.where(ARRIVALS.c.series_id.in_(series_ids))
        with self._database.transaction() as tx:
            return set(tx.scalars(query)).intersection(series_ids)

    def seen(self, series_ids: Collection[str]) -> set[str]:
        """Instances of the series of which a job was made.

        But for a job that ended because they were gone: it has waited for them.
        """
        waited = sa.and_(JOBS.c.state == State.REJECTED, JOBS.c.error == Gone.__name__)
        query = sa.select(JOBS.c.instance_ids).where(JOBS.c.series_id.in_(series_ids), ~waited)
        with self._database.transaction() as tx:
            return {one for instance_ids in tx.scalars(query) for one in instance_ids}

    def record(
        self,
        name: str,
        cursor: Cursor,
        received: Mapping[str, Origin | None],
        *,
        seen_at: float | None = None,
        longest_s: float = 0.0,
    ) -> None:
        """Note which series received something and move the feed's cursor, both or neither.

        Parameters
        ----------
        received
            Series → where it came from; None for what is known already.
        seen_at
            When the feed was last read to its end: a series that is here again was silent at least
            until then. Pauses up to ``longest_s`` are remembered of the sender.
        """
        now = self._database.clock()
        with self._database.transaction() as tx:
            for series_id, origin in received.items():
                row = tx.execute(sa.select(ARRIVALS).where(ARRIVALS.c.series_id == series_id))
                before = row.one_or_none()
                if before is not None and seen_at is not None:
                    pause_s = seen_at - before.last_change_at
                    if 0 < pause_s <= longest_s:
                        _remember(tx, before.sender, pause_s, now)
                values: dict[str, object] = {"last_change_at": now, "quiet": False}
                if origin is not None:
                    values |= {"sender": origin.sender, "address": origin.address}
                upsert(tx, ARRIVALS, {"series_id": series_id}, values)
            upsert(tx, CURSORS, {"name": name}, {"value": cursor.value, "line": cursor.line})

    def sender(self, series_id: str) -> str:
        """AE title that sent the first of the series that was seen; empty for HTTP."""
        query = sa.select(ARRIVALS.c.sender).where(ARRIVALS.c.series_id == series_id)
        with self._database.transaction() as tx:
            return str(tx.scalar(query) or "")

    def waiting(self) -> list[Arrival]:
        """Every series of which no job has been made since it last received something."""
        now = self._database.clock()
        query = sa.select(ARRIVALS).where(ARRIVALS.c.quiet.is_(False))
        with self._database.transaction() as tx:
            return [
                Arrival(
                    row.series_id,
                    row.last_change_at,
                    Origin(row.sender, row.address),
                    now - row.last_change_at,
                )
                for row in tx.execute(query.order_by(ARRIVALS.c.last_change_at))
            ]

    def pauses_s(self) -> Mapping[str, float]:
        """Sender → the pause that it has shown more than once within a series, in seconds."""
        fresh = SENDERS.c.since > self._database.clock() - _REMEMBERED_S
        query = sa.select(SENDERS.c.sender, SENDERS.c.second_pause_s).where(fresh)
        with self._database.transaction() as tx:
            return {row.sender: row.second_pause_s for row in tx.execute(query)}

    @property
    def now(self) -> float:
        """The clock that stamps arrivals."""
        return self._database.clock()


def settle_s(pause_s: float, quiet_s: float, max_quiet_s: float) -> float:
    """How long a series must be silent, of a sender who pauses for ``pause_s``."""
    return min(max(quiet_s, _MARGIN * pause_s), max_quiet_s)


def still_sending(arrival: Arrival, waiting: Iterable[Arrival], associations: int) -> bool:
    """Whether one of the sender's open associations may be in the middle of this series.

    An association that sends another series has moved on: each active series takes up one.
    """
    active = sum(
        1
        for other in waiting
        if other.origin.address == arrival.origin.address
        and other.series_id != arrival.series_id
        and other.silent_s < arrival.silent_s
    )
    return associations > active


def mark_quiet(tx: Connection, series_id: str, last_change_at: float | None = None) -> None:
    """A job was made of what the series holds: only what arrives later counts again.

    With ``last_change_at``, only if nothing has arrived since then.
    """
    change = sa.update(ARRIVALS).where(ARRIVALS.c.series_id == series_id)
    if last_change_at is not None:
        change = change.where(ARRIVALS.c.last_change_at == last_change_at)
    tx.execute(change.values(quiet=True))


def _remember(tx: Connection, sender: str, pause_s: float, now: float) -> None:
    """Keep the two longest pauses: what happened once is an accident, twice a habit."""
    row = tx.execute(sa.select(SENDERS).where(SENDERS.c.sender == sender)).one_or_none()
    fresh = row is not None and now - row.since < _REMEMBERED_S
    seen = [row.longest_pause_s, row.second_pause_s] if row is not None and fresh else [0.0, 0.0]
    longest, second = sorted([*seen, pause_s], reverse=True)[:2]
    since = row.since if row is not None and fresh else now
    values = {"longest_pause_s": longest, "second_pause_s": second, "since": since}
    upsert(tx, SENDERS, {"sender": sender}, values)
