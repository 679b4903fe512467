"""Which line of the feed the cursor stands on; who sends, from where, and how long they pause."""

import sqlalchemy as sa
from alembic import op

revision = "v0002"
down_revision = "v0001"


def upgrade() -> None:
    for table, column in (("cursors", "line"), ("arrivals", "sender"), ("arrivals", "address")):
        op.add_column(table, _text(column))
    op.create_table(
        "senders",
        sa.Column("sender", sa.String, primary_key=True),
        sa.Column("longest_pause_s", sa.Float, nullable=False),
        sa.Column("second_pause_s", sa.Float, nullable=False),
        sa.Column("since", sa.Float, nullable=False),
    )


def _text(name: str) -> "sa.Column[str]":
    return sa.Column(name, sa.String, nullable=False, server_default=sa.text("''"))
