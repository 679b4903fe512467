"""Received instances whose file is gone, until they come again."""

import sqlalchemy as sa
from alembic import op

revision = "v0004"
down_revision = "v0003"


def upgrade() -> None:
    op.create_table(
        "lost",
        sa.Column("instance_id", sa.String, primary_key=True),
        sa.Column("series_id", sa.String, nullable=False),
        sa.Column("study_id", sa.String, nullable=False),
        sa.Column("since", sa.Float, nullable=False),
    )
