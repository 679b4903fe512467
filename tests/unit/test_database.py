"""The node's database: who can read it, what its errors say, and who goes on without it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from node.edges.database import Database
from node.edges.ledger import Ledger
from node.edges.orthanc import Orthanc
from node.edges.watch import Watch
from node.errors import LedgerUnavailable
from tests.orthanc_server import free_port

REPOSITORY = Path(__file__).resolve().parents[2]


def test_only_its_owner_reads_the_ledger_whoever_opens_it_first(tmp_path: Path) -> None:
    """`segnode doctor` before the first `segnode up`, by a person whose files others may read."""
    before = os.umask(0o022)
    try:
        database = Database(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
        with database.transaction():
            files = list(tmp_path.iterdir())
    finally:
        os.umask(before)
    assert len(files) == 3  # it, -wal and -shm
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_an_error_of_the_database_shows_no_parameters(database_url: str) -> None:
    """They hold whatever is known of a job."""
    database = Database(database_url)
    with database.transaction() as tx:
        tx.execute(sa.text("CREATE TABLE twice (name VARCHAR PRIMARY KEY)"))
    same = [{"name": "sentinel"}, {"name": "sentinel"}]
    with pytest.raises(IntegrityError) as raised, database.transaction() as tx:
        tx.execute(sa.text("INSERT INTO twice VALUES (:name)"), same)
    assert "INSERT INTO twice" in str(raised.value)
    assert "[parameters" not in str(raised.value)


def test_a_database_that_is_away_at_the_start_is_said_in_words(tmp_path: Path) -> None:
    """No foreign exception, which names hosts and users."""
    with pytest.raises(LedgerUnavailable):
        Database(f"sqlite:///{tmp_path / 'none' / 'ledger.sqlite'}")


def test_the_watch_waits_for_a_ledger_that_is_away(tmp_path: Path) -> None:
    """Its chores and its sweeper live in the same process."""
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    stop, waited = threading.Event(), list[float]()

    def rename(old: str, new: str) -> None:
        with ledger.database.transaction() as tx:
            tx.execute(sa.text(f"ALTER TABLE {old} RENAME TO {new}"))

    def wait(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 1:
            rename("away", "arrivals")
        else:
            stop.set()

    orthanc = Orthanc(f"http://127.0.0.1:{free_port()}", "nobody", "none")
    watch = Watch(orthanc, ledger, lambda job: None, quiet_s=1)
    rename("arrivals", "away")
    watch.run(stop, wait, 1.0)
    assert len(waited) == 2


def test_a_process_that_fails_logs_where_and_not_what(tmp_path: Path) -> None:
    """A foreign exception's text may quote anything; here it is part of an address."""
    environment = {
        **os.environ, "SEGNODE_LEDGER_URL": "sentinel://nowhere", "SEGNODE_VAR_DIR": str(tmp_path),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "node.cli", "run", "console"], cwd=REPOSITORY, env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "sentinel" not in done.stdout + done.stderr
    assert json.loads(done.stdout)["error"] == "NoSuchModuleError"
