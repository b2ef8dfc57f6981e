from structlog.testing import capture_logs

from gateway.conversation.overrides import NOTHING, Overrides, Speech

BOTH = ("tts.voice_id", "agent.first_message")


def test_nothing_told() -> None:
    """What the operator lets be overridden may be, at an agent of which nothing is known."""
    overrides = Overrides(BOTH)

    assert (frozenset(BOTH), NOTHING) == (overrides.allowed("agent_1"), overrides.speech_before("agent_1"))
    assert (frozenset(BOTH), NOTHING) == (overrides.allowed(None), overrides.speech_before(None))


def test_refused() -> None:
    """A leaf that an agent refuses is left out for that agent, for as long as it was said last."""
    overrides = Overrides(BOTH)

    overrides.update("agent_1", refused_leaves=["tts.voice_id"], before=NOTHING)
    actual = [overrides.allowed("agent_1"), overrides.allowed("agent_2")]
    overrides.update("agent_1", refused_leaves=[], before=NOTHING)

    assert [{"agent.first_message"}, set(BOTH), set(BOTH)] == [*actual, overrides.allowed("agent_1")]


def test_settings_that_were_not_seen() -> None:
    """What an agent was known to refuse holds, while nobody can say what it refuses now."""
    overrides = Overrides(BOTH)

    overrides.update("agent_1", refused_leaves=["tts.voice_id"], before=NOTHING)
    overrides.update("agent_1", refused_leaves=None, before=NOTHING)
    overrides.update("agent_2", refused_leaves=None, before=NOTHING)

    assert [{"agent.first_message"}, set(BOTH)] == [
        overrides.allowed("agent_1"),
        overrides.allowed("agent_2"),
    ]


def test_said_once() -> None:
    """What has to be switched on is said once for an agent and a leaf that would have been overridden."""
    overrides = Overrides(("tts.voice_id",))

    with capture_logs() as lines:
        for _ in range(3):
            overrides.update("agent_1", refused_leaves=BOTH, before=NOTHING)
        overrides.update("agent_2", refused_leaves=BOTH, before=NOTHING)

    assert [
        {
            "event": "override left out",
            "log_level": "warning",
            "agent_id": agent_id,
            "leaf": "tts.voice_id",
            "switch_on": "platform_settings.overrides.conversation_config_override.tts.voice_id",
        }
        for agent_id in ("agent_1", "agent_2")
    ] == lines


def test_before() -> None:
    """What an agent had is known for as long as it was said last."""
    overrides = Overrides(BOTH)
    own = Speech(voice_id="voice_0", first_message="Hello!")

    overrides.update("agent_1", refused_leaves=[], before=own)
    actual = overrides.speech_before("agent_1")
    overrides.update("agent_1", refused_leaves=[], before=NOTHING)

    assert [own, NOTHING] == [actual, overrides.speech_before("agent_1")]
