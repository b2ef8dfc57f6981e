"""Updates of agents that were made, or may have been, after their locks had run out."""

import msgspec

from cloner.registry import agents
from cloner.registry.agent import UNANSWERED, AgentRow
from cloner.registry.statement import Statement, assignments
from cloner.registry.transaction import Transaction

__all__ = ["note"]

CURRENT = Statement(f"SELECT {agents.FIELDS} FROM agents WHERE agent_id = :agent_id FOR UPDATE")
UPDATED_LATE = Statement(f"""
    UPDATE agents SET {assignments(AgentRow, key="agent_id")},
        restoring = true, holder = :left, changes = changes + 1
    WHERE agent_id = :agent_id
""")
UPDATED_LATE_AGAIN = Statement("""
    UPDATE agents SET restoring = true, holder = :left, changes = changes + 1 WHERE agent_id = :agent_id
""")
UPDATED_LATE_UNDER_ANOTHER = Statement("""
    UPDATE agents SET before_voice_id = :before_voice_id, before_first_message = :before_first_message,
        former_marker = :former_marker, former_voice_id = :former_voice_id,
        former_first_message = :former_first_message, holder = :left, changes = changes + 1
    WHERE agent_id = :agent_id
""")


def note(tx: Transaction, row: AgentRow, *, unanswered: bool = False) -> None:
    """Notes that an agent was changed after its lock had expired, so that it is put back.

    Meanwhile another call may have stored our value as the agent's own; this corrects it. Whoever has the
    agent now loses the lock, and so does not note that all is well with it.
    """
    found = tx.one(CURRENT, agent_id=row.agent_id)
    assert found is not None  # noqa: S101 - the intent wrote it, and no row of an agent is ever removed
    current, left = AgentRow(*found), UNANSWERED if unanswered else ""
    if not current.marker:
        tx.run(UPDATED_LATE, **msgspec.structs.asdict(row), left=left)
        return
    if (current.marker, current.call_id) == (row.marker, row.call_id):
        tx.run(UPDATED_LATE_AGAIN, agent_id=row.agent_id, left=left)
        return
    voice, message = current.before_voice_id, current.before_first_message
    tx.run(
        UPDATED_LATE_UNDER_ANOTHER,
        agent_id=row.agent_id,
        before_voice_id=row.before_voice_id if voice == row.voice_id else voice,
        before_first_message=row.before_first_message if message == row.first_message else message,
        former_marker=row.marker,
        former_voice_id=row.voice_id,
        former_first_message=row.first_message,
        left=left,
    )
