"""What has arrived and how long ago: the cursor of the changes feed, and the quiet timer."""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from node.edges.database import Database, upsert
from node.edges.ledger_tables import ARRIVALS, CURSORS


class Arrivals:
    """Series that received something, in the same database as the ledger."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def cursor(self, name: str) -> int:
        """The last sequence number read of a feed; 0 when it was never read."""
        with self._database.transaction() as tx:
            value = tx.scalar(sa.select(CURSORS.c.value).where(CURSORS.c.name == name))
        return int(value or 0)

    def record(self, name: str, value: int, series_ids: Iterable[str]) -> None:
        """Note which series received something and move the feed's cursor, both or neither."""
        now = self._database.clock()
        with self._database.transaction() as tx:
            for series_id in set(series_ids):
                upsert(
                    tx,
                    ARRIVALS,
                    {"series_id": series_id},
                    {"last_change_at": now, "quiet": False},
                )
            upsert(tx, CURSORS, {"name": name}, {"value": value})

    def quiet_series(self, quiet_s: float) -> list[str]:
        """Series that have received nothing for ``quiet_s`` seconds, and no job made of it yet."""
        query = sa.select(ARRIVALS.c.series_id).where(
            ARRIVALS.c.quiet.is_(False),
            ARRIVALS.c.last_change_at <= self._database.clock() - quiet_s,
        )
        with self._database.transaction() as tx:
            return list(tx.scalars(query))


def mark_quiet(tx: Connection, series_id: str) -> None:
    """A job was made of what the series holds: only what arrives later counts again."""
    upsert(tx, ARRIVALS, {"series_id": series_id}, {"quiet": True}, insert=False)
