"""The deployment knows the key of its hashes, by a text from which nothing else can be learnt of it."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Of a deployment from before, the key of its next start is taken.
    op.add_column("deployment", sa.Column("key_check", sa.Text))
