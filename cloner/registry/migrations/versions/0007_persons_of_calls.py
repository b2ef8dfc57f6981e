"""Calls keep the person whom a delivery stated, also after it failed, and are found by person and number."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

# Most calls have the same hash for both, by which they are found already.
APART = sa.text("person <> caller")
# Calls of a release from before are left as they are: to write them all anew would hold up others.
OLDER = sa.text("person = '' AND stated <> ''")


def upgrade() -> None:
    op.add_column("calls", sa.Column("person", sa.Text, nullable=False, server_default=sa.text("''")))
    op.create_index("ix_calls_number", "calls", ["number"])
    op.create_index("ix_calls_person", "calls", ["person"], sqlite_where=APART, postgresql_where=APART)
    op.create_index("ix_calls_stated", "calls", ["stated"], sqlite_where=OLDER, postgresql_where=OLDER)
