"""The tables: the deployment, its voices, calls, agents and requests, and the processes that are at them.

voices  one row for each create that was intended, whatever became of it

        intended ──▶ ready ──▶ deleting ──▶ gone
           │           ▲
           └──▶ failed ┘ (its voice turned up after all)

calls   one row for each conversation that was asked about
agents  what an agent had before it was given a caller's voice, until that is put back
processes  those that are at intents, and their last signs of life
requests   those that their senders named, and the voices that came of them; for a day
consents   every consent that was told of a person, and every one that was withdrawn

Of a caller, number and date of birth are stored as keyed hashes only.

Revisions 0001 to 0004 were never released. A database of theirs is refused, as another release's is.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = None
branch_labels = None
depends_on = None

ACTIVE = sa.text("state IN ('intended', 'ready')")
INTENDED = sa.text("state = 'intended'")
DELETING = sa.text("state = 'deleting'")
CLOSED = sa.text("state IN ('gone', 'failed')")
READY = sa.text("state = 'ready'")
NEVER_KEPT = sa.text("state = 'ready' AND kept_until = 0")
KEPT = sa.text("state = 'ready' AND kept_until > 0")
REFERENCE = sa.text("client_reference <> ''")
OPEN = sa.text("ended_at IS NULL")
# Without the open calls, through which SQLite would go by this index to find the old ones.
ENDED = sa.text("ended_at IS NOT NULL")
BEFORE = sa.text("before_voice_id IS NOT NULL")
FORMER = sa.text("former_marker IS NOT NULL")
GIVEN = sa.text("marker IS NOT NULL AND NOT restoring")
RESTORING = sa.text("restoring")

NOTHING = sa.text("''")
ZERO = sa.text("0")


def upgrade() -> None:
    op.create_table(
        "deployment",
        # One row, whose key is always 1: the name by which our voices are told from another deployment's.
        sa.Column("id", sa.BigInteger, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("created_at", sa.Float(53), nullable=False),
        # When the provider's monthly counter starts again, where it is known to be used up.
        sa.Column("month_resets_at", sa.Float(53)),
        # Until when some process has the work of a reconciliation for itself.
        sa.Column("reconciled_until", sa.Float(53), nullable=False, server_default=ZERO),
        sa.PrimaryKeyConstraint("id", name="pk_deployment"),
    )
    op.create_table(
        "voices",
        sa.Column("marker", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("caller", sa.Text, nullable=False),
        # While intended: the caller whose voice it takes the place of, and who until then is not its own.
        sa.Column("replaces", sa.Text),
        sa.Column("number", sa.Text),
        # As `caller`, but the same for every sample and every call of that caller.
        sa.Column("person", sa.Text, nullable=False, server_default=NOTHING),
        sa.Column("greeting_name", sa.Text, nullable=False, server_default=NOTHING),
        sa.Column("voice_id", sa.Text),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("created_at", sa.Float(53), nullable=False),
        sa.Column("used_at", sa.Float(53), nullable=False),
        # When the provider was last seen to have it.
        sa.Column("checked_at", sa.Float(53), nullable=False),
        # While intended: the process that is at it.
        sa.Column("owner", sa.Text, nullable=False, server_default=NOTHING),
        # While deleting: how often it was tried, and when the next try may begin.
        sa.Column("tries", sa.BigInteger, nullable=False, server_default=ZERO),
        sa.Column("due_at", sa.Float(53), nullable=False, server_default=ZERO),
        sa.Column("closed_at", sa.Float(53)),
        sa.Column("reason", sa.Text),
        # The reference of the consent to clone it, and when that was told.
        sa.Column("consent", sa.Text, nullable=False, server_default=NOTHING),
        sa.Column("consent_at", sa.Float(53)),
        # Until when it is kept, calls or no calls, because it was taken ahead of time.
        sa.Column("kept_until", sa.Float(53), nullable=False, server_default=ZERO),
        # The trace of the request that had it made, for links from later work.
        sa.Column("traceparent", sa.Text, nullable=False, server_default=NOTHING),
        # What a sender calls it.
        sa.Column("client_reference", sa.Text, nullable=False, server_default=NOTHING),
        # The trace of whoever gave it up.
        sa.Column("given_up_by", sa.Text, nullable=False, server_default=NOTHING),
        sa.PrimaryKeyConstraint("marker", name="pk_voices"),
        sa.UniqueConstraint("voice_id", name="uq_voices_voice_id"),
    )
    # One voice for one caller, whoever asks at the same time.
    op.create_index(
        "ix_voices_active_caller", "voices", ["caller"],
        unique=True, sqlite_where=ACTIVE, postgresql_where=ACTIVE,
    )  # fmt: skip
    op.create_index("ix_voices_number", "voices", ["number"])
    op.create_index("ix_voices_person", "voices", ["person"])
    op.create_index("ix_voices_caller", "voices", ["caller"])
    # What is asked every second, and what is listed, costs the same however many voices there are. There is
    # none for the state alone: SQLite would take that one, and look through every voice that is ready.
    for name, columns, those in (
        ("ix_voices_intended", ["marker"], INTENDED),
        ("ix_voices_used", ["used_at"], READY),
        ("ix_voices_never_kept", ["used_at"], NEVER_KEPT),
        ("ix_voices_kept", ["kept_until"], KEPT),
        ("ix_voices_newest", ["created_at", "marker"], READY),
        ("ix_voices_reference", ["client_reference", "created_at", "marker"], REFERENCE),
        ("ix_voices_due", ["due_at"], DELETING),
        ("ix_voices_closed", ["closed_at"], CLOSED),
    ):
        op.create_index(name, "voices", columns, sqlite_where=those, postgresql_where=those)
    # For lists of those that are not ready.
    op.create_index("ix_voices_made", "voices", ["created_at", "marker"])
    op.create_table(
        "consents",
        sa.Column("person", sa.Text, nullable=False),
        # Which one of the person's it is, from 1.
        sa.Column("place", sa.BigInteger, nullable=False),
        sa.Column("number", sa.Text),
        sa.Column("reference", sa.Text, nullable=False),
        sa.Column("withdrawn", sa.Boolean, nullable=False),
        sa.Column("at", sa.Float(53), nullable=False),
        sa.PrimaryKeyConstraint("person", "place", name="pk_consents"),
    )
    op.create_index("ix_consents_number", "consents", ["number"])
    op.create_table(
        "processes",
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("alive_at", sa.Float(53), nullable=False),
        sa.PrimaryKeyConstraint("owner", name="pk_processes"),
    )
    op.create_table(
        "requests",
        # The sender's name for it, and what it asked for, sample included, as keyed hashes.
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("content", sa.Text, nullable=False),
        # The voice that came of it, once the intent to make it is written down.
        sa.Column("marker", sa.Text),
        sa.Column("reused", sa.Boolean, nullable=False),
        sa.Column("at", sa.Float(53), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_requests"),
    )
    op.create_index("ix_requests_marker", "requests", ["marker"])
    op.create_index("ix_requests_at", "requests", ["at"])
    op.create_table(
        "calls",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("agent_id", sa.Text, nullable=False),
        sa.Column("conversation_id", sa.Text, nullable=False),
        sa.Column("caller", sa.Text, nullable=False),
        sa.Column("marker", sa.Text),
        sa.Column("number", sa.Text),
        # Who is calling, once a delivery has said so. Until then `caller` is whom the number found.
        sa.Column("stated", sa.Text, nullable=False, server_default=NOTHING),
        # Whether ElevenLabs itself calls the conversation so, and not only a delivery.
        sa.Column("confirmed", sa.Boolean, nullable=False, server_default=sa.text("false")),
        sa.Column("begun_at", sa.Float(53), nullable=False),
        sa.Column("ended_at", sa.Float(53)),
        # The traces that opened and ended it.
        sa.Column("traceparent", sa.Text, nullable=False, server_default=NOTHING),
        sa.Column("ended_by", sa.Text, nullable=False, server_default=NOTHING),
        sa.PrimaryKeyConstraint("id", name="pk_calls"),
    )
    op.create_index("ix_calls_marker", "calls", ["marker"])
    op.create_index("ix_calls_conversation", "calls", ["conversation_id"])
    op.create_index("ix_calls_caller", "calls", ["caller"])
    op.create_index("ix_calls_ended", "calls", ["ended_at"], sqlite_where=ENDED, postgresql_where=ENDED)
    op.create_index("ix_calls_begun", "calls", ["begun_at", "id"])
    op.create_index("ix_calls_open", "calls", ["begun_at"], sqlite_where=OPEN, postgresql_where=OPEN)
    op.create_index(
        "ix_calls_open_at_agent", "calls", ["agent_id", "begun_at"], sqlite_where=OPEN, postgresql_where=OPEN
    )
    op.create_table(
        "agents",
        sa.Column("agent_id", sa.Text, nullable=False),
        sa.Column("marker", sa.Text),
        sa.Column("call_id", sa.Text),
        sa.Column("voice_id", sa.Text),
        sa.Column("first_message", sa.Text),
        sa.Column("before_voice_id", sa.Text),
        sa.Column("before_first_message", sa.Text),
        # Another voice that we had given it, and its greeting, while it may still have that one.
        sa.Column("former_marker", sa.Text),
        sa.Column("former_voice_id", sa.Text),
        sa.Column("former_first_message", sa.Text),
        # Whether the agent is to get back what it had before.
        sa.Column("restoring", sa.Boolean, nullable=False, server_default=sa.text("false")),
        # Until when some process has this agent for itself.
        sa.Column("held_until", sa.Float(53), nullable=False, server_default=ZERO),
        sa.Column("holder", sa.Text, nullable=False, server_default=NOTHING),
        # How often it was changed, so that what was read of an agent before a change is known to be old.
        sa.Column("changes", sa.BigInteger, nullable=False, server_default=ZERO),
        # The trace of the request that gave it its voice.
        sa.Column("traceparent", sa.Text, nullable=False, server_default=NOTHING),
        sa.PrimaryKeyConstraint("agent_id", name="pk_agents"),
    )
    op.create_index("ix_agents_marker", "agents", ["marker"])
    op.create_index("ix_agents_call", "agents", ["call_id"])
    # By a voice that an agent has or had, and by what is to be done about it. The row of an agent stays when
    # it is put back, so no query may look through all of them.
    for name, column, those in (
        ("ix_agents_before", "before_voice_id", BEFORE),
        ("ix_agents_former", "former_marker", FORMER),
        ("ix_agents_given", "marker", GIVEN),
        ("ix_agents_restoring", "held_until", RESTORING),
    ):
        op.create_index(name, "agents", [column], sqlite_where=those, postgresql_where=those)
