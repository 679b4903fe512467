"""The schema's revisions: what they build is what the code reads and writes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from node.edges.database import MIGRATIONS, Database, newest_revision
from node.edges.ledger import Ledger
from node.edges.ledger_tables import METADATA
from node.errors import LedgerUnavailable
from tests.postgres import PostgresCluster


def test_revisions_build_exactly_the_tables_that_the_code_uses(database_url: str) -> None:
    """Alembic finds nothing to add, drop or change between the two, defaults and types included."""
    with Database(database_url).transaction() as tx:
        options = {"compare_type": True, "compare_server_default": True}
        assert compare_metadata(MigrationContext.configure(tx, opts=options), METADATA) == []


def test_revisions_form_one_line_whose_end_is_the_last_file() -> None:
    """Two people who add a revision at the same time hear of it here, not at a hospital."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    revisions = list(ScriptDirectory.from_config(config).walk_revisions())
    assert ScriptDirectory.from_config(config).get_heads() == [newest_revision()]
    for one in revisions:
        assert Path(one.path).name.startswith(f"{one.revision}_")


def test_a_ledger_from_before_there_were_revisions_keeps_its_jobs(database_url: str) -> None:
    """Its schema is that of the first revision; the others are applied to it, with its rows."""
    engine = sa.create_engine(database_url)
    with engine.begin() as tx:
        _run_first_revision(tx)
        tx.execute(sa.text("DROP TABLE alembic_version"))
        tx.execute(
            sa.text(
                "INSERT INTO jobs (id, key, series_id, study_id, instance_ids, instance_set, step,"
                " state, attempt, model, model_digest, rule, rule_version, destinations, facts,"
                " cause, remedy, error, progress, created_at, updated_at) VALUES ('job', 'key',"
                " 'series', 'study', '[\"a\"]', 'set', 'receive', 'queued', 0, '', '', '', '',"
                " '[]', '{}', '', '', '', 0, 1, 1)"
            )
        )
    engine.dispose()
    [job] = Ledger(database_url).jobs()
    assert (job.id, job.instance_ids) == ("job", ("a",))


def test_processes_that_start_together_migrate_once(database_url: str) -> None:
    """The first one that comes does it; the others wait and find it done."""
    with ThreadPoolExecutor(6) as threads:
        ledgers = list(threads.map(lambda _: Ledger(database_url), range(6)))
    assert [ledger.jobs() for ledger in ledgers] == [[]] * 6


def _run_first_revision(tx: sa.Connection) -> None:
    from alembic import command

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = tx
    command.upgrade(config, "v0001")


def test_a_database_that_is_gone_is_waited_for(postgres: PostgresCluster) -> None:
    """What talks to it is told to try again later, by class, like anything else outside."""
    ledger = Ledger(postgres.database())
    with ledger.database.transaction() as tx:
        name = tx.scalar(sa.text("SELECT current_database()"))
    postgres.drop(name)
    with pytest.raises(LedgerUnavailable):
        ledger.jobs()
