"""The node's one database, SQLite or PostgreSQL, opened at the newest revision of its schema."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import InterfaceError, OperationalError

from node.errors import LedgerUnavailable

MIGRATIONS = Path(__file__).resolve().parent / "migrations"
_VERSION = sa.table("alembic_version", sa.column("version_num"))
#: Held while one process migrates; any number that nobody else of this database uses.
_MIGRATION_LOCK = 0x5E6_0DE


class Database:
    """Transactions and the clock that stamps them. Safe to share between threads and processes.

    Everything kept here is written through classes that take one of these: the ledger, the
    arrivals. What they change together, they change in one :meth:`transaction`.
    """

    def __init__(self, url: str, *, clock: Callable[[], float] | None = None) -> None:
        """``clock`` is, by default, this machine's; with PostgreSQL the database's, for machines
        that share leases must share a clock."""
        self._engine = _engine(url)
        shared = self._engine.dialect.name == "postgresql"
        self.clock = clock or (self._database_time if shared else time.time)
        with _named_errors():
            migrate(self._engine)

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """All of it or nothing; on SQLite, one at a time.

        Raises
        ------
        LedgerUnavailable
            The database does not answer, is locked for too long, or has no room.
        """
        with _named_errors(), self._engine.begin() as tx:
            yield tx

    def _database_time(self) -> float:
        asked = sa.select(sa.func.extract("epoch", sa.func.clock_timestamp()))
        with self.transaction() as tx:
            return float(tx.scalar(asked) or 0.0)

    def forget_connections(self) -> None:
        """Open new connections from here on: a forked process must not use its parent's."""
        self._engine.dispose(close=False)

    def close(self) -> None:
        """Close every connection; the next transaction opens new ones."""
        self._engine.dispose()


def newest_revision() -> str:
    """The revision that this code works with: ``v0001_beginning.py`` is revision ``v0001``."""
    return max(file.stem for file in (MIGRATIONS / "versions").glob("v*.py")).partition("_")[0]


def migrate(engine: Engine) -> None:
    """Bring the database to :func:`newest_revision`, all of it or nothing.

    One process does it, others that start meanwhile wait. A database from before there were
    revisions has the schema of the first.
    """
    with engine.begin() as tx:
        if tx.dialect.name == "postgresql":
            tx.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
        present = sa.inspect(tx).get_table_names()
        counted = "alembic_version" in present
        if counted and tx.scalar(sa.select(_VERSION.c.version_num)) == newest_revision():
            return
        from alembic import command  # a tenth of a second that only a migration costs
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        config.attributes["connection"] = tx
        if "jobs" in present and not counted:
            command.stamp(config, "v0001")
        command.upgrade(config, "head")


def upsert(
    tx: Connection, table: sa.Table, key: Mapping[str, Any], values: Mapping[str, Any],
    *, insert: bool = True,
) -> None:  # fmt: skip
    """Change the row with this key, or make it (unless ``insert`` is false)."""
    where = sa.and_(*(table.c[name] == value for name, value in key.items()))
    changed = tx.execute(sa.update(table).where(where).values(**values))
    if insert and changed.rowcount == 0:
        tx.execute(sa.insert(table).values(**key, **values))


def in_parts(ids: Sequence[str], size: int = 500) -> Iterator[Sequence[str]]:
    """For ``IN``: SQLite takes a limited number of values in one query."""
    return (ids[start : start + size] for start in range(0, len(ids), size))


@contextmanager
def _named_errors() -> Iterator[None]:
    try:
        yield
    except (OperationalError, InterfaceError) as error:
        cause = type(error.orig).__name__
        raise LedgerUnavailable(f"The ledger's database does not answer ({cause})") from None


def _engine(url: str) -> Engine:
    engine = sa.create_engine(url, pool_pre_ping=True, hide_parameters=True)
    if engine.dialect.name == "sqlite":
        _make_private(engine.url.database)

        @sa.event.listens_for(engine, "connect")
        def _on_connect(connection: Any, _record: Any) -> None:
            connection.isolation_level = None  # transactions begin below, not on first write
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")  # an answer given survives power loss
            connection.execute("PRAGMA busy_timeout=30000")

        @sa.event.listens_for(engine, "begin")
        def _on_begin(connection: Connection) -> None:
            # A read that turns into a write would otherwise fail with SQLITE_BUSY_SNAPSHOT.
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _make_private(file: str | None) -> None:
    """Only its owner reads the file; SQLite gives what it writes beside it the same mode."""
    if file and file != ":memory:":
        with suppress(OSError):  # SQLite will say what is wrong with it
            Path(file).touch(mode=0o600)
