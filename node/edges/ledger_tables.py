"""The tables of the ledger and the arrivals. A change here comes with a revision (migrations/)."""

from __future__ import annotations

from dataclasses import fields

import sqlalchemy as sa
from sqlalchemy.engine import RowMapping

from node.jobs import Job, Priority, State, StepName

METADATA = sa.MetaData()

#: How far a feed was read, and what stood in the last line: another feed has another line there.
CURSORS = sa.Table(
    "cursors",
    METADATA,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
    sa.Column("line", sa.String, nullable=False, server_default=sa.text("''")),
)

#: A series that received something. ``quiet`` once a job was made of what it held. ``sender`` and
#: ``address`` are the AE title and host that sent its first instance; empty for HTTP.
ARRIVALS = sa.Table(
    "arrivals",
    METADATA,
    sa.Column("series_id", sa.String, primary_key=True),
    sa.Column("last_change_at", sa.Float, nullable=False),
    sa.Column("quiet", sa.Boolean, nullable=False, index=True),
    sa.Column("sender", sa.String, nullable=False, server_default=sa.text("''")),
    sa.Column("address", sa.String, nullable=False, server_default=sa.text("''")),
)

#: The longest pauses seen within one series of a sender, since a time.
SENDERS = sa.Table(
    "senders",
    METADATA,
    sa.Column("sender", sa.String, primary_key=True),
    sa.Column("longest_pause_s", sa.Float, nullable=False),
    sa.Column("second_pause_s", sa.Float, nullable=False),
    sa.Column("since", sa.Float, nullable=False),
)

JOBS = sa.Table(
    "jobs",
    METADATA,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("key", sa.String, nullable=False, unique=True),
    sa.Column("series_id", sa.String, nullable=False, index=True),
    sa.Column("study_id", sa.String, nullable=False, index=True),
    sa.Column("instance_ids", sa.JSON, nullable=False),
    sa.Column("instance_set", sa.String, nullable=False),
    sa.Column("step", sa.String, nullable=False),
    sa.Column("state", sa.String, nullable=False, index=True),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("crashes", sa.Integer, nullable=False, server_default="0"),
    sa.Column("lease", sa.Integer, nullable=False, server_default="0"),
    sa.Column("priority", sa.String, nullable=False, server_default="routine"),
    sa.Column("rank", sa.Float, nullable=False, server_default="0"),  # the lowest goes first
    sa.Column("model", sa.String, nullable=False),
    sa.Column("model_digest", sa.String, nullable=False),
    sa.Column("rule", sa.String, nullable=False),
    sa.Column("rule_version", sa.String, nullable=False),
    sa.Column("destinations", sa.JSON, nullable=False),
    sa.Column("facts", sa.JSON, nullable=False),
    sa.Column("cause", sa.String, nullable=False),
    sa.Column("remedy", sa.String, nullable=False),
    sa.Column("error", sa.String, nullable=False),
    sa.Column("progress", sa.Float, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("updated_at", sa.Float, nullable=False),
    sa.Column("step_since", sa.Float, nullable=False, server_default="0"),
    sa.Column("next_try_at", sa.Float),
    sa.Column("lease_until", sa.Float),
    sa.Column("deadline_at", sa.Float),  # no lease lasts longer
    sa.Index("ix_jobs_turn", "state", "step", "rank"),
)

ATTEMPTS = sa.Table(
    "attempts",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("job_id", sa.String, nullable=False, index=True),
    sa.Column("step", sa.String, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("started_at", sa.Float, nullable=False),
    sa.Column("ended_at", sa.Float),
    sa.Column("outcome", sa.String, nullable=False),
)

#: Queues and destinations that a person has paused: ``queue:cpu``, ``destination:archive``.
PAUSES = sa.Table(
    "pauses",
    METADATA,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("since", sa.Float, nullable=False),
    sa.Column("who", sa.String, nullable=False),
)

#: Received instances whose file is gone (``node.edges.lost_instances``).
LOST = sa.Table(
    "lost",
    METADATA,
    sa.Column("instance_id", sa.String, primary_key=True),
    sa.Column("series_id", sa.String, nullable=False),
    sa.Column("study_id", sa.String, nullable=False),
    sa.Column("since", sa.Float, nullable=False),
)

#: Every change of state of every job, chained by hashes, one chain for each study.
JOURNAL = sa.Table(
    "journal",
    METADATA,
    sa.Column("study_id", sa.String, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("entry", sa.JSON, nullable=False),
    sa.Column("hash", sa.String, nullable=False),
)

#: Where each chain ends. Locked first by whoever changes a job of the study.
JOURNAL_HEADS = sa.Table(
    "journal_heads",
    METADATA,
    sa.Column("study_id", sa.String, primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("hash", sa.String, nullable=False),
)

JOB_FIELDS = tuple(f.name for f in fields(Job))


def job_of(row: RowMapping) -> Job:
    """A row of the table of jobs, as a job."""
    values = {name: row[name] for name in JOB_FIELDS}
    values["instance_ids"] = tuple(values["instance_ids"])
    values["destinations"] = tuple(values["destinations"])
    values["step"] = StepName(values["step"])
    values["state"] = State(values["state"])
    values["priority"] = Priority(values["priority"])
    return Job(**values)
