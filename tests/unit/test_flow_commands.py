"""`segnode queue`, `pacs pause`, `journal`: what a person does, without a single server."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from node.cli import app, main
from node.edges.ledger import Ledger
from node.errors import NotPossible
from node.jobs import Event
from node.pipeline import STEPS


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """The ledger of a node that has one peer and is not running."""
    configuration = tmp_path / "segnode.toml"
    configuration.write_text(
        f'var_dir = "{tmp_path / "var"}"\n'
        '[[dicom_peers]]\nname = "archive"\nae_title = "ARCHIVE"\nhost = "127.0.0.1"\nport = 104\n'
    )
    monkeypatch.setenv("SEGNODE_CONFIG", str(configuration))
    (tmp_path / "var").mkdir()
    return Ledger(f"sqlite:///{tmp_path / 'var' / 'ledger.sqlite'}", who="sweeper")


def segnode(*arguments: str) -> Result:
    """Run the command; what it raises is raised here."""
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_a_queue_is_paused_shown_and_resumed(ledger: Ledger) -> None:
    """Nothing of it starts meanwhile, and the list says who stopped it."""
    ledger.open_jobs("series", "study", ("a",))
    segnode("queue", "pause", "io")
    assert ledger.claim_next(STEPS, 30) is None
    said = segnode("queue", "list").stdout
    assert "paused" in said and "person at the command line" in said
    segnode("queue", "resume", "all")
    assert ledger.claim_next(STEPS, 30) is not None
    with pytest.raises(NotPossible, match="no queue 'disk'"):
        segnode("queue", "pause", "disk")


def test_draining_waits_until_nothing_runs(ledger: Ledger) -> None:
    """With nothing running it returns at once, and the queue stays paused."""
    ledger.open_jobs("series", "study", ("a",))
    assert "Nothing of all runs" in segnode("queue", "drain", "all").stdout
    assert ledger.claim_next(STEPS, 30) is None


def test_a_destination_is_paused_by_its_name(ledger: Ledger) -> None:
    """A name that is no peer is a typing error, not a pause that never ends."""
    segnode("pacs", "pause", "archive")
    assert ledger.paused() == {"archive"}
    assert "archive" in segnode("queue", "list").stdout
    segnode("pacs", "resume", "archive")
    assert ledger.paused() == frozenset()
    with pytest.raises(NotPossible, match="no peer 'archiv'"):
        segnode("pacs", "pause", "archiv")


def test_the_journal_is_shown_verified_and_exported(ledger: Ledger, tmp_path: Path) -> None:
    """By the study's id or a job's; the export is verified by itself; tampering is status 1."""
    job = ledger.open_jobs("series", "study", ("a",))
    assert job is not None
    segnode("cancel", job.id[:8])
    shown = segnode("journal", job.id[:8]).stdout
    assert "sweeper" in shown and "person at the command line" in shown and "canceled" in shown
    assert "2 entries, whole" in segnode("journal", "study", "--verify").stdout
    file = tmp_path / "journal.jsonl"
    segnode("journal", "study", "--export", str(file))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    lines = file.read_text().splitlines()
    assert "2 entries, whole" in segnode("journal", str(file), "--verify").stdout
    file.write_text(lines[1])
    assert segnode("journal", str(file)).exit_code == 1
    file.write_text("no journal")
    with pytest.raises(NotPossible, match="Line 1"):
        segnode("journal", str(file))
    assert json.loads(lines[0])["entry"]["study"] == "study"
    with ledger.database.transaction() as tx:
        tx.exec_driver_sql("DELETE FROM journal WHERE number = 2")
    assert segnode("journal", "study", "--verify").exit_code == 1


def test_what_looks_like_markup_is_shown_as_it_is(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A cause may name a path or a setting in brackets: no command fails on it or swallows it."""
    job = ledger.open_jobs("series", "study", ("a",))
    assert job is not None
    held = ledger.claim_next(STEPS, 30)
    assert held is not None
    cause, remedy = "no [/] ends [red]here", "see [[rules]]"
    ledger.end(held, Event.FAULT, cause=cause, remedy=remedy, error="[/]")
    for command in (["job", job.id], ["jobs"], ["journal", "study"]):
        assert cause in segnode(*command).stdout
    monkeypatch.setattr("sys.argv", ["segnode", "queue", "pause", "[/]"])
    with pytest.raises(SystemExit):
        main()
    assert "There is no queue '[/]'" in capfd.readouterr().err
