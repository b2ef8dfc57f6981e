"""Indexes by which an agent is found: by a voice that it has or had, and by what is to be done about it.

Nothing is looked through, however many agents there were: the row of an agent stays when it is put back.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

INDEXES = (
    ("ix_agents_before", "before_voice_id", "before_voice_id IS NOT NULL"),
    ("ix_agents_former", "former_marker", "former_marker IS NOT NULL"),
    ("ix_agents_given", "marker", "marker IS NOT NULL AND NOT restoring"),
    ("ix_agents_restoring", "held_until", "restoring"),
)


def upgrade() -> None:
    for name, column, those in INDEXES:
        condition = sa.text(those)
        op.create_index(name, "agents", [column], sqlite_where=condition, postgresql_where=condition)


def downgrade() -> None:
    for name, *_ in reversed(INDEXES):
        op.drop_index(name, "agents")
