"""What the stories of the registry are about: a registry, what ElevenLabs has, and what always holds."""

import itertools
from collections.abc import Iterator

from cloner.provider.elevenlabs import AgentVoice
from cloner.registry import Transaction, voices

PRESUMED, CALL_MAX, STALE, GRACE, KEEP = 900.0, 7_200.0, 8.0, 120.0, 3_600.0
# How long a delivery waits, how long an agent is changed at the most, and how much longer it is then held.
PATIENCE, LEFT, AFTERMATH = 20.0, 10.0, 30.0
CALLERS, AGENTS, CONVERSATIONS, PROCESSES = 3, 2, 4, 2
BEFORE = {f"agent_{n}": AgentVoice(f"premade_{n}", f"Welcome to {n}.") for n in range(AGENTS)}
Steps = Iterator[None]


class World:
    """A registry, what ElevenLabs has, and who is at what."""

    def __init__(self, tx: Transaction) -> None:
        self.tx = tx
        self.now = 1_000_000.0
        self.made: dict[str, tuple[str, str, float]] = {}  # voice -> its marker, its caller, when
        self.agents = dict(BEFORE)
        self.open: dict[str, tuple[str, str, float]] = {}  # call -> its agent, its caller, when
        self.steps: list[tuple[int, Steps]] = []
        self.alive = [0] * PROCESSES  # how often each process was started
        self.numbers = itertools.count()

    def owner(self, process: int) -> str:
        """What a process is called in the registry."""
        return f"process_{process}_{self.alive[process]}"

    def others(self, agent: str, caller: str) -> bool:
        """Whether another caller's call is in progress at the agent."""
        return any(
            (at, self.now - begun < PRESUMED) == (agent, True) and who != caller
            for at, who, begun in self.open.values()
        )

    def give(self, agent: str, wanted: AgentVoice) -> None:
        """Changes an agent at ElevenLabs, which takes no voice that it does not have."""
        now = self.agents[agent]
        voice = wanted.voice_id or now.voice_id
        assert voice in self.made or voice == BEFORE[agent].voice_id
        self.agents[agent] = AgentVoice(voice, wanted.first_message or now.first_message)

    def delete(self, voice: str) -> None:
        """Deletes a voice at ElevenLabs, with which nobody speaks any more."""
        assert voice not in {spoken.voice_id for spoken in self.agents.values()}, "an agent lost its voice"
        self.made.pop(voice, None)

    def check(self) -> None:
        """What holds at every moment."""
        ready = voices.ready(self.tx)
        assert len({row.caller for row in ready}) == len(ready), "two voices of one caller"
        assert {row.voice_id for row in ready} <= self.made.keys(), "a voice that ElevenLabs does not have"
        for row in ready:
            marker, caller, _ = self.made[row.voice_id or ""]
            assert (row.marker, row.caller) == (marker, caller), "a voice of somebody else"
