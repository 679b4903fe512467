"""Databases for the tests that run on each of them, and a ledger on such a one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from node.edges.ledger import Ledger
from tests.ledger_case import Clock
from tests.postgres import PostgresCluster


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresCluster]:
    """One PostgreSQL for the whole run."""
    with PostgresCluster() as cluster:
        yield cluster


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database, once of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    cluster: PostgresCluster = request.getfixturevalue("postgres")
    return cluster.database()


@pytest.fixture
def clock() -> Clock:
    """The clock of :func:`ledger`."""
    return Clock()


@pytest.fixture
def ledger(database_url: str, clock: Clock) -> Iterator[Ledger]:
    """A ledger on each kind of database."""
    made = Ledger(database_url, clock=clock)
    yield made
    made.database.close()
