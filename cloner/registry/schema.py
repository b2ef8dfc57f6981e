"""The tables. A change here needs a migration in `cloner/migrations/versions`.

    voices  one row for each create that was intended, whatever became of it

            intended ──▶ ready ──▶ deleting ──▶ gone
               │           ▲
               └──▶ failed ┘ (its voice turned up after all)

    calls   one row for each conversation that was asked about
    agents  what an agent had before it was given a caller's voice, until that is put back

Of a caller, number and date of birth are stored as keyed hashes only.
"""

from sqlalchemy import BigInteger, Boolean, Column, Float, Index, MetaData, String, Table, text

__all__ = ["ACTIVE", "agents", "calls", "deployment", "metadata", "voices"]

metadata = MetaData(
    naming_convention={"pk": "pk_%(table_name)s", "uq": "uq_%(table_name)s_%(column_0_N_name)s"}
)

ACTIVE = text("state IN ('intended', 'ready')")

deployment = Table(
    "deployment",
    metadata,
    # One row, whose key is always 1: the name by which our voices are told from another deployment's.
    Column("id", BigInteger, primary_key=True),
    Column("name", String(64), nullable=False),
    Column("created_at", Float(53), nullable=False),
    # When the provider's monthly counter starts again, where it is known to be used up.
    Column("month_resets_at", Float(53)),
    # Until when some process has the work of a reconciliation for itself.
    Column("reconciled_until", Float(53), nullable=False, server_default=text("0")),
)

voices = Table(
    "voices",
    metadata,
    Column("marker", String(128), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("caller", String(64), nullable=False),
    # While intended: the caller whose voice it takes the place of, and who until then is not its own.
    Column("replaces", String(64)),
    Column("number", String(64)),
    # As `caller`, but the same for every sample and every call of that caller.
    Column("person", String(64), nullable=False, server_default=""),
    Column("greeting_name", String(200), nullable=False, server_default=""),
    Column("voice_id", String(128), unique=True),
    Column("name", String(128), nullable=False),
    Column("created_at", Float(53), nullable=False),
    Column("used_at", Float(53), nullable=False),
    # When the provider was last seen to have it.
    Column("checked_at", Float(53), nullable=False),
    # While intended: the process that is at it, and its last sign of life.
    Column("owner", String(64), nullable=False, server_default=""),
    Column("alive_at", Float(53), nullable=False, server_default=text("0")),
    # While deleting: how often it was tried, and when the next try may begin.
    Column("tries", BigInteger, nullable=False, server_default=text("0")),
    Column("due_at", Float(53), nullable=False, server_default=text("0")),
    Column("closed_at", Float(53)),
    Column("reason", String(64)),
    # The reference of the consent to clone it, and when that was told.
    Column("consent", String(200), nullable=False, server_default=""),
    Column("consent_at", Float(53)),
    # Until when it is kept, calls or no calls, because it was taken ahead of time.
    Column("kept_until", Float(53), nullable=False, server_default=text("0")),
    # The delivery that made it, for links from later work.
    Column("traceparent", String(64), nullable=False, server_default=""),
    # One voice for one caller, whoever asks at the same time.
    Index("ix_voices_active_caller", "caller", unique=True, sqlite_where=ACTIVE, postgresql_where=ACTIVE),
    Index("ix_voices_state", "state", "due_at"),
    Index("ix_voices_number", "number"),
    Index("ix_voices_person", "person"),
)

calls = Table(
    "calls",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("agent_id", String(128), nullable=False),
    Column("conversation_id", String(256), nullable=False),
    Column("caller", String(64), nullable=False),
    Column("marker", String(128)),
    # Whether a delivery has said who is calling. Until then `caller` is whom the number found, or nobody.
    Column("named", Boolean, nullable=False, server_default=text("true")),
    Column("begun_at", Float(53), nullable=False),
    Column("ended_at", Float(53)),
    Index("ix_calls_agent", "agent_id", "begun_at"),
    Index("ix_calls_marker", "marker"),
    Index("ix_calls_conversation", "conversation_id"),
)

agents = Table(
    "agents",
    metadata,
    Column("agent_id", String(128), primary_key=True),
    Column("marker", String(128)),
    Column("call_id", String(64)),
    Column("voice_id", String(128)),
    Column("first_message", String),
    Column("before_voice_id", String(128)),
    Column("before_first_message", String),
    # Another voice that we had given it, and its greeting, while nobody knows whether it still has that one.
    Column("former_marker", String(128)),
    Column("former_voice_id", String(128)),
    Column("former_first_message", String),
    # Whether the agent is to get back what it had before.
    Column("restoring", Boolean, nullable=False, server_default=text("false")),
    # Until when some process has this agent for itself.
    Column("held_until", Float(53), nullable=False, server_default=text("0")),
    Column("holder", String(64), nullable=False, server_default=""),
    # Counts the changes, so that what was read of an agent before one is known to be old.
    Column("turn", BigInteger, nullable=False, server_default=text("0")),
    Index("ix_agents_marker", "marker"),
)
