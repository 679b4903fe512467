"""The journal: what happened to each study, every entry chained to the one before by its hash.

One chain per study (Orthanc's id of it, a hash). An entry is written in the transaction that
changes the job, so neither is there without the other. The end of each chain is kept apart: an
entry that was changed, removed, put elsewhere or cut off the end is found. Who may write the
database may of course write all of it anew; against that stands an export kept elsewhere.

No value of a patient is in it: ids are hashes, causes name tags, and the UIDs are our results'.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from node.edges.database import Database
from node.edges.ledger_tables import JOURNAL, JOURNAL_HEADS
from node.errors import NotPossible
from node.jobs import Event, Job, State


@dataclass(frozen=True)
class Entry:
    """One line of a study's journal; ``hash`` covers ``entry``, which holds the hash before it."""

    number: int
    entry: Mapping[str, Any]
    hash: str


@dataclass(frozen=True)
class Verdict:
    """Whether a journal is as it was written; if not, where that shows first."""

    entries: int
    head: str
    problem: str = ""


class Chain:
    """The end of one study's journal, locked until the transaction ends.

    Whoever changes a job locks its study here before anything else: so two changes of one study
    never overlap, and never wait for each other crosswise.
    """

    def __init__(self, tx: Connection, study_id: str) -> None:
        self._tx, self._study_id = tx, study_id
        self._number, self._hash = self._locked()

    def append(self, at: float, who: str, event: Event, state: State, job: Job) -> None:
        """Note what happened to ``job``, which is given as it is after the event."""
        entry = {
            "number": self._number + 1,
            "previous": self._hash,
            "at_ms": round(at * 1000),
            "who": who,
            "study": self._study_id,
            "event": str(event),
            "state": str(state),
            **_told(job),
        }
        self._number, self._hash = self._number + 1, hash_of(entry)
        self._tx.execute(
            sa.insert(JOURNAL).values(
                study_id=self._study_id, number=self._number, entry=entry, hash=self._hash
            )
        )
        self._tx.execute(
            sa.update(JOURNAL_HEADS)
            .where(JOURNAL_HEADS.c.study_id == self._study_id)
            .values(number=self._number, hash=self._hash)
        )

    def _locked(self) -> tuple[int, str]:
        head = (
            sa.select(JOURNAL_HEADS.c.number, JOURNAL_HEADS.c.hash)
            .where(JOURNAL_HEADS.c.study_id == self._study_id)
            .with_for_update()
        )
        found = self._tx.execute(head).one_or_none()
        if found is None:
            self._tx.execute(_new_head(self._tx, self._study_id))
            found = self._tx.execute(head).one()
        return int(found.number), str(found.hash)


class Journal:
    """The journals of all studies, to be read and verified."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def entries(self, study_id: str) -> list[Entry]:
        """All entries of a study, as they are found."""
        with self._database.transaction() as tx:
            return _entries(tx, study_id)

    def verify(self, study_id: str) -> Verdict:
        """Follow the chain from its beginning to the end that is kept apart.

        Raises
        ------
        NotPossible
            Nothing is known of such a study.
        """
        head = sa.select(JOURNAL_HEADS).where(JOURNAL_HEADS.c.study_id == study_id)
        with self._database.transaction() as tx:
            end = tx.execute(head).one_or_none()
            entries = _entries(tx, study_id)
        if end is None and not entries:
            raise NotPossible("There is no journal of such a study; `segnode jobs` lists studies.")
        return verdict_of(entries, (end.number, end.hash) if end else None)

    def studies(self) -> list[str]:
        """Every study that has a journal, or has had one."""
        query = sa.union(sa.select(JOURNAL_HEADS.c.study_id), sa.select(JOURNAL.c.study_id))
        with self._database.transaction() as tx:
            return sorted(tx.scalars(query))


def lines_of(entries: Iterable[Entry]) -> Iterator[str]:
    """The export: one JSON object per line, ``{"entry": …, "hash": …}``, in the chain's order."""
    for one in entries:
        yield json.dumps({"entry": one.entry, "hash": one.hash}, sort_keys=True)


def entries_of(lines: Iterable[str]) -> list[Entry]:
    """An export read back; anybody can verify it without this node.

    Raises
    ------
    NotPossible
        A line is not as an export writes it.
    """
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            plain = json.loads(line)
            found.append(Entry(int(plain["entry"]["number"]), plain["entry"], str(plain["hash"])))
        except (ValueError, KeyError, TypeError):
            raise NotPossible(
                f"Line {number} is no line of a journal",
                remedy="Use a file that `segnode journal STUDY --export` wrote.",
            ) from None
    return found


def verdict_of(entries: list[Entry], end: tuple[int, str] | None) -> Verdict:
    """Follow the chain; ``end`` is the number and hash that it must lead to, if known."""
    previous = ""
    for number, one in enumerate(entries, start=1):
        if one.number != number or one.entry.get("number") != number:
            return Verdict(number - 1, previous, f"Entry {number} is missing or elsewhere")
        if one.entry.get("previous") != previous:
            return Verdict(number - 1, previous, f"Entry {number} does not follow the one before")
        if hash_of(one.entry) != one.hash:
            return Verdict(number - 1, previous, f"Entry {number} was changed")
        previous = one.hash
    if end is not None and end != (len(entries), previous):
        return Verdict(len(entries), previous, f"Entries after number {len(entries)} are missing")
    return Verdict(len(entries), previous)


def hash_of(entry: Mapping[str, Any]) -> str:
    """SHA-256, hexadecimal, of the entry as JSON with sorted keys and no blanks."""
    written = json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(written.encode()).hexdigest()


def note(database: Database, who: str, event: Event, job: Job) -> None:
    """Note what happened around ``job`` and left its state as it is."""
    with database.transaction() as tx:
        Chain(tx, job.study_id).append(database.clock(), who, event, job.state, job)


def _told(job: Job) -> dict[str, Any]:
    """What an entry says of its job, without what is empty."""
    results = [uid for one in job.facts.get("results", ()) for uid in one["sop_instance_uids"]]
    delivery = {name: one.get("state") for name, one in job.facts.get("delivery", {}).items()}
    told = {
        "job": job.id, "series": job.series_id, "step": str(job.step), "attempt": job.attempt,
        "priority": str(job.priority), "instances": len(job.instance_ids),
        "model": job.model, "model_digest": job.model_digest,
        "rule": job.rule, "rule_version": job.rule_version,
        "cause": job.cause, "error": job.error, "results": results, "delivery": delivery,
    }  # fmt: skip
    return {name: value for name, value in told.items() if value not in ("", [], {}, 0)}


def _new_head(tx: Connection, study_id: str) -> sa.Executable:
    from sqlalchemy.dialects import postgresql, sqlite

    insert = postgresql.insert if tx.dialect.name == "postgresql" else sqlite.insert
    made = insert(JOURNAL_HEADS).values(study_id=study_id, number=0, hash="")
    return made.on_conflict_do_nothing()


def _entries(tx: Connection, study_id: str) -> list[Entry]:
    query = sa.select(JOURNAL).where(JOURNAL.c.study_id == study_id).order_by(JOURNAL.c.number)
    return [Entry(row.number, row.entry, row.hash) for row in tx.execute(query)]
