"""The traces that later work links to: who opened and ended a call, gave an agent its voice, gave up a voice.

voices.traceparent, which is older, is the request that had the voice made. This is a revision of its own, and
not a part of 0001, because registries and back-ups of revision 0001 exist and must be brought up to date.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

ADDED = (
    ("calls", "traceparent"),
    ("calls", "ended_by"),
    ("agents", "traceparent"),
    ("voices", "given_up_by"),
)


def upgrade() -> None:
    for table, column in ADDED:
        op.add_column(table, sa.Column(column, sa.Text, nullable=False, server_default=sa.text("''")))


def downgrade() -> None:
    for table, column in reversed(ADDED):
        op.drop_column(table, column)
