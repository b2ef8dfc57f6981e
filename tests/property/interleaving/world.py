"""What the stories of the registry are about: a registry, what ElevenLabs has, and what always holds."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from cloner.provider.elevenlabs import AgentVoice
from cloner.registry import Transaction, deployment, holding, requests, voices
from cloner.registry.holding import LANDS_SECONDS
from cloner.registry.statement import Statement

PRESUMED, CALL_MAX, STALE, GRACE, KEEP = 900.0, 7_200.0, 8.0, 120.0, 3_600.0
# How long no other process reconciles.
RECONCILE = 600.0
# How long a voice is kept that was made ahead of time.
AHEAD = 5_000.0
# How long a delivery waits, and how long an agent is changed at the most.
PATIENCE, LEFT = 20.0, 10.0
CALLERS, AGENTS, CONVERSATIONS, PROCESSES, REQUESTS = 3, 2, 4, 2, 5
# Whose steps are made, whichever process dies.
NOBODY = -1
BEFORE = {f"agent_{n}": AgentVoice(f"premade_{n}", f"Welcome to {n}.") for n in range(AGENTS)}
# Two callers share a number.
NUMBERS = {f"caller_{n}": f"number_{n // 2}" for n in range(CALLERS)}
Steps = Iterator[None]

# Read past the product's own statements, which are what is tried.
PERSONS = Statement("SELECT DISTINCT person FROM voices WHERE number = :number ORDER BY person")
CONSENTING = Statement("SELECT DISTINCT person FROM consents WHERE number = :number")
PRIVATE = {
    "voices": Statement("""
        SELECT state FROM voices WHERE (person = :caller OR caller = :caller OR replaces = :caller) AND (
            state <> 'deleting' OR number IS NOT NULL OR consent <> '' OR name <> '' OR greeting_name <> ''
        )
    """),
    "calls": Statement("""
        SELECT id FROM calls WHERE caller = :caller OR stated = :caller
            OR marker IN (SELECT marker FROM voices WHERE person = :caller)
    """),
    "consents": Statement("SELECT reference FROM consents WHERE person = :caller"),
    # One that led to nothing counts as a day old from the start, and is dropped with those.
    "requests": Statement("""
        SELECT key FROM requests WHERE (content LIKE '%' || :caller AND at > :day_ago)
            OR marker IN (SELECT marker FROM voices WHERE person = :caller)
    """),
}
OF_NUMBER = {
    table: Statement(f"SELECT 1 FROM {table} WHERE number = :number")
    for table in ("voices", "calls", "consents")
}
UNMARKED = Statement("""
    SELECT agent_id FROM agents WHERE marker IS NOT NULL AND NOT restoring
        AND NOT EXISTS (SELECT 1 FROM calls WHERE calls.id = agents.call_id AND calls.ended_at IS NULL)
""")
# Nobody can give such an agent anything.
UNFINISHED = Statement("SELECT agent_id FROM agents WHERE holder <> '' AND NOT restoring")
GREETINGS = Statement("SELECT first_message FROM agents WHERE first_message IS NOT NULL")
OLD_ROWS = Statement("SELECT created_at FROM voices WHERE person = :caller AND created_at < :before")


class Work(NamedTuple):
    """What the holder of an agent's lock is at."""

    process: int
    agent: str
    sent: AgentVoice | None = None
    """The change that ElevenLabs was asked for and has not answered; None for an agent that is put back."""


class World:
    """A registry, what ElevenLabs has, and who is at what."""

    def __init__(self, tx: Transaction) -> None:
        self.tx = tx
        self.now = 1_000_000.0
        deployment.settle(tx, "tested", self.now)
        self.made: dict[str, tuple[str, str, float]] = {}  # voice -> its marker, its caller, when
        self.agents = dict(BEFORE)
        self.open: dict[str, tuple[str, str, float]] = {}  # call -> its agent, its caller, when
        self.stated: dict[str, str] = {}  # call -> the caller that a delivery stated
        self.voices: dict[str, str] = {}  # call -> the marker of its voice
        self.kept: dict[str, float] = {}  # marker -> until when its voice is kept
        self.revoked: set[str] = set()  # markers whose voices nobody may have any more
        self.withdrawn: set[str] = set()  # callers whose consent is withdrawn
        self.told: set[tuple[str, str]] = set()  # callers, and the consents that deliveries brought
        self.forgotten: dict[str, float] = {}  # caller -> when
        self.answers: dict[str, tuple[str, str, float]] = {}  # request -> its content, its voice, when
        self.latest_call = ("agent_0", "conv_0")
        self.latest_request = (
            "caller_0",
            "request_0",
            False,
        )  # whose voice was asked for, and by which request
        self.steps: list[tuple[int, Steps]] = []
        self.alive = [0] * PROCESSES  # how often each process was started
        self.numbers = itertools.count()
        self.locks: dict[str, Work] = {}  # holder -> what it is at
        self.late: set[str] = set()  # agents that an update has reached so late that nobody waited for it

    def owner(self, process: int) -> str:
        """What a process is called in the registry."""
        return f"process_{process}_{self.alive[process]}"

    def others(self, agent: str, caller: str) -> bool:
        """Whether another caller's call is in progress at the agent."""
        return any(
            (at, self.now - begun < PRESUMED) == (agent, True) and who != caller
            for at, who, begun in self.open.values()
        )

    def known_by(self, number: str) -> set[str]:
        """Who has a voice, a consent or a call with a stated caller under the number."""
        known = {row[0] for query in (PERSONS, CONSENTING) for row in self.tx.all(query, number=number)}
        return known | {caller for caller in self.stated.values() if NUMBERS[caller] == number}

    def give(self, agent: str, wanted: AgentVoice) -> None:
        """Changes an agent at ElevenLabs, which takes no voice that it does not have."""
        now = self.agents[agent]
        voice = wanted.voice_id or now.voice_id
        assert voice in self.made or voice == BEFORE[agent].voice_id
        self.agents[agent] = AgentVoice(voice, wanted.first_message or now.first_message)

    def send(self, agent: str, wanted: AgentVoice) -> None:
        """Asks ElevenLabs for a change of an agent that is made some time later, or never."""
        self.steps.append((NOBODY, self._land(agent, wanted, until=self.now + LANDS_SECONDS)))

    def _land(self, agent: str, wanted: AgentVoice, *, until: float) -> Steps:
        if self.now < until and wanted.voice_id in self.made:
            self.late.add(agent)
            self.give(agent, wanted)
        yield

    def pass_time(self, seconds: float, *, standing_still: bool) -> None:
        """Time passes; who works at an agent keeps its lock, unless all processes stand still."""
        self.now += seconds
        for holder, work in () if standing_still else self.locks.items():
            holding.renew(self.tx, work.agent, holder=holder, now=self.now)

    def kill(self, process: int) -> None:
        """A process dies; what it had asked ElevenLabs for may be done all the same."""
        self.alive[process] += 1
        self.steps = [(by, steps) for by, steps in self.steps if by != process]
        died = [holder for holder, work in self.locks.items() if work.process == process]
        for work in [self.locks.pop(holder) for holder in died]:
            if work.sent is not None and next(self.numbers) % 2 == 0:
                self.send(work.agent, work.sent)

    def delete(self, voice: str) -> None:
        """Deletes a voice at ElevenLabs, with which nobody speaks any more as far as can be known."""
        spoken = {self.agents[agent].voice_id for agent in self.agents.keys() - self.late}
        assert voice not in spoken, "an agent lost its voice"
        self.made.pop(voice, None)

    def check(self) -> None:
        """What holds at every moment."""
        ready = voices.ready(self.tx)
        assert len({row.caller for row in ready}) == len(ready), "two voices of one caller"
        assert {row.voice_id for row in ready} <= self.made.keys(), "a voice that ElevenLabs does not have"
        for row in ready:
            marker, caller, _ = self.made[row.voice_id or ""]
            assert (row.marker, row.caller) == (marker, caller), "a voice of somebody else"
            assert row.caller not in self.withdrawn, "a voice without consent"
            assert row.marker not in self.revoked, "a voice that was given up came back"
        assert [] == self.tx.all(UNMARKED), "an agent of a call that is over is not to be put back"

    def answer(self, request: requests.NamedRequest, marker: str, asked: float) -> None:
        """A request is answered: within a day as before, and only to whoever asked for the same."""
        content, before, at = self.answers.get(request.key, (request.content, marker, asked))
        if self.now < at + requests.KEPT_SECONDS:
            assert (content, before) == (request.content, marker), "another answer to the same request"
        else:
            at = asked
        self.answers[request.key] = (request.content, marker, at)

    def forget(self, *callers: str, number: str = "") -> None:
        """They were forgotten: nothing is left but what is needed to delete their voices."""
        for caller in callers:
            for table, statement in PRIVATE.items():
                left = self.tx.all(statement, caller=caller, day_ago=self.now - requests.KEPT_SECONDS)
                assert [] == left, f"{table} of a caller who was forgotten"
            self.forgotten[caller] = self.now
        gone = {*callers, number}
        self.open = {call: at for call, at in self.open.items() if at[1] not in gone}
        self.stated = {call: caller for call, caller in self.stated.items() if caller not in gone}
        self.withdrawn -= gone
        self.told = {(caller, consent) for caller, consent in self.told if caller not in gone}
