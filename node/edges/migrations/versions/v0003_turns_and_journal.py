"""Whose turn it is, leases that cannot be mistaken, deadlines, pauses, and the journal."""

import sqlalchemy as sa
from alembic import op

revision = "v0003"
down_revision = "v0002"


def upgrade() -> None:
    with op.batch_alter_table("jobs") as jobs:
        jobs.add_column(sa.Column("crashes", sa.Integer, nullable=False, server_default="0"))
        jobs.add_column(sa.Column("lease", sa.Integer, nullable=False, server_default="0"))
        jobs.add_column(sa.Column("priority", sa.String, nullable=False, server_default="routine"))
        jobs.add_column(sa.Column("rank", sa.Float, nullable=False, server_default="0"))
        jobs.add_column(sa.Column("step_since", sa.Float, nullable=False, server_default="0"))
        jobs.add_column(sa.Column("deadline_at", sa.Float))
        jobs.drop_column("wake_at")
    op.execute("UPDATE jobs SET rank = created_at, step_since = updated_at, lease = attempt")
    op.create_index("ix_jobs_turn", "jobs", ["state", "step", "rank"])
    op.create_table(
        "pauses",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("since", sa.Float, nullable=False),
        sa.Column("who", sa.String, nullable=False),
    )
    op.create_table(
        "journal",
        sa.Column("study_id", sa.String, primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("entry", sa.JSON, nullable=False),
        sa.Column("hash", sa.String, nullable=False),
    )
    op.create_table(
        "journal_heads",
        sa.Column("study_id", sa.String, primary_key=True),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("hash", sa.String, nullable=False),
    )
