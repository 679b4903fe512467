"""The schema as it was before there were revisions."""

import sqlalchemy as sa
from alembic import op

revision = "v0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "cursors",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("value", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "arrivals",
        sa.Column("series_id", sa.String, primary_key=True),
        sa.Column("last_change_at", sa.Float, nullable=False),
        sa.Column("quiet", sa.Boolean, nullable=False, index=True),
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("key", sa.String, nullable=False, unique=True),
        sa.Column("series_id", sa.String, nullable=False, index=True),
        sa.Column("study_id", sa.String, nullable=False, index=True),
        sa.Column("instance_ids", sa.JSON, nullable=False),
        sa.Column("instance_set", sa.String, nullable=False),
        sa.Column("step", sa.String, nullable=False),
        sa.Column("state", sa.String, nullable=False, index=True),
        sa.Column("attempt", sa.Integer, nullable=False),
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
        sa.Column("next_try_at", sa.Float),
        sa.Column("lease_until", sa.Float),
        sa.Column("wake_at", sa.Float),
    )
    op.create_table(
        "attempts",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("job_id", sa.String, nullable=False, index=True),
        sa.Column("step", sa.String, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("started_at", sa.Float, nullable=False),
        sa.Column("ended_at", sa.Float),
        sa.Column("outcome", sa.String, nullable=False),
    )
