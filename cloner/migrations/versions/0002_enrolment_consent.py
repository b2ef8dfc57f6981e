"""Voices know their person, their consent and until when they are kept; calls, how their voice was found."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("voices", sa.Column("person", sa.String(64), nullable=False, server_default=""))
    op.add_column("voices", sa.Column("replaces", sa.String(64)))
    op.add_column("voices", sa.Column("consent", sa.String(200), nullable=False, server_default=""))
    op.add_column("voices", sa.Column("consent_at", sa.Float(53)))
    op.add_column(
        "voices", sa.Column("kept_until", sa.Float(53), nullable=False, server_default=sa.text("0"))
    )
    op.add_column("calls", sa.Column("named", sa.Boolean, nullable=False, server_default=sa.text("true")))
    op.create_index("ix_voices_person", "voices", ["person"])
    # The same by default; with another VOICE_REUSE, older voices belong to one person each.
    op.execute("UPDATE voices SET person = caller")


def downgrade() -> None:
    op.drop_column("calls", "named")
    op.drop_index("ix_voices_person", "voices")
    for column in ("kept_until", "consent_at", "consent", "replaces", "person"):
        op.drop_column("voices", column)
