"""Voices, calls and agents."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

ACTIVE = sa.text("state IN ('intended', 'ready')")


def upgrade() -> None:
    op.create_table(
        "deployment",
        sa.Column("id", sa.BigInteger, nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Float(53), nullable=False),
        sa.Column("month_resets_at", sa.Float(53)),
        sa.Column("reconciled_until", sa.Float(53), nullable=False, server_default=sa.text("0")),
        sa.PrimaryKeyConstraint("id", name="pk_deployment"),
    )
    op.create_table(
        "voices",
        sa.Column("marker", sa.String(128), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("caller", sa.String(64), nullable=False),
        sa.Column("number", sa.String(64)),
        sa.Column("greeting_name", sa.String(200), nullable=False, server_default=""),
        sa.Column("voice_id", sa.String(128)),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("created_at", sa.Float(53), nullable=False),
        sa.Column("used_at", sa.Float(53), nullable=False),
        sa.Column("checked_at", sa.Float(53), nullable=False),
        sa.Column("owner", sa.String(64), nullable=False, server_default=""),
        sa.Column("alive_at", sa.Float(53), nullable=False, server_default=sa.text("0")),
        sa.Column("tries", sa.BigInteger, nullable=False, server_default=sa.text("0")),
        sa.Column("due_at", sa.Float(53), nullable=False, server_default=sa.text("0")),
        sa.Column("closed_at", sa.Float(53)),
        sa.Column("reason", sa.String(64)),
        sa.Column("traceparent", sa.String(64), nullable=False, server_default=""),
        sa.PrimaryKeyConstraint("marker", name="pk_voices"),
        sa.UniqueConstraint("voice_id", name="uq_voices_voice_id"),
    )
    op.create_index(
        "ix_voices_active_caller",
        "voices",
        ["caller"],
        unique=True,
        sqlite_where=ACTIVE,
        postgresql_where=ACTIVE,
    )
    op.create_index("ix_voices_state", "voices", ["state", "due_at"])
    op.create_index("ix_voices_number", "voices", ["number"])
    op.create_table(
        "calls",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("agent_id", sa.String(128), nullable=False),
        sa.Column("conversation_id", sa.String(256), nullable=False),
        sa.Column("caller", sa.String(64), nullable=False),
        sa.Column("marker", sa.String(128)),
        sa.Column("begun_at", sa.Float(53), nullable=False),
        sa.Column("ended_at", sa.Float(53)),
        sa.PrimaryKeyConstraint("id", name="pk_calls"),
    )
    op.create_index("ix_calls_agent", "calls", ["agent_id", "begun_at"])
    op.create_index("ix_calls_marker", "calls", ["marker"])
    op.create_index("ix_calls_conversation", "calls", ["conversation_id"])
    op.create_table(
        "agents",
        sa.Column("agent_id", sa.String(128), nullable=False),
        sa.Column("marker", sa.String(128)),
        sa.Column("call_id", sa.String(64)),
        sa.Column("voice_id", sa.String(128)),
        sa.Column("first_message", sa.String),
        sa.Column("before_voice_id", sa.String(128)),
        sa.Column("before_first_message", sa.String),
        sa.Column("former_marker", sa.String(128)),
        sa.Column("former_voice_id", sa.String(128)),
        sa.Column("former_first_message", sa.String),
        sa.Column("restoring", sa.Boolean, nullable=False, server_default=sa.text("false")),
        sa.Column("held_until", sa.Float(53), nullable=False, server_default=sa.text("0")),
        sa.Column("holder", sa.String(64), nullable=False, server_default=""),
        sa.Column("turn", sa.BigInteger, nullable=False, server_default=sa.text("0")),
        sa.PrimaryKeyConstraint("agent_id", name="pk_agents"),
    )
    op.create_index("ix_agents_marker", "agents", ["marker"])


def downgrade() -> None:
    for table in ("agents", "calls", "voices", "deployment"):
        op.drop_table(table)
