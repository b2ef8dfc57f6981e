"""The path of one call, from who is calling to what the call needs, and the end of every call."""

import asyncio
import contextlib
from collections.abc import Callable

import msgspec
import structlog
from opentelemetry.trace import Link, get_current_span

from cloner.agents.agent_settings import AgentSettings
from cloner.agents.decision import Wish
from cloner.agents.giving import Agents
from cloner.agents.missed import Missed
from cloner.agents.reading import BegunReading, Reading, result_of
from cloner.background import Background
from cloner.call import Begun, Call, Prepared, agent_before
from cloner.deliveries import Deliveries, UnderWay
from cloner.provider.awaited import Awaited
from cloner.provider.elevenlabs import AgentVoice
from cloner.provider.failures import AgentNotFound, AgentRejected, Busy
from cloner.registry import (
    NewCall,
    Noted,
    RegistryUnavailable,
    Store,
    VoiceRow,
    calls,
    voices,
    was_given_up,
)
from cloner.voices import callers
from cloner.voices.callers import ConversationMismatch, Identities
from cloner.voices.finding import Found, Voices
from cloner.voices.postponed import ids_of
from cloner.voices.samples import Samples
from cloner.voices.voice import Voice
from environment.memory import unraised
from telemetry.facts import add_log_context, remove_log_context
from telemetry.parts import part
from telemetry.tracing import traceparent

__all__ = ["Calls"]

log = structlog.get_logger()

# How often a call looks for a voice, where the one that it had found is gone before its agent has it.
ROUNDS = 3
# How long a failure waits until the caller of its call is taken back.
UNSTATE_SECONDS = 0.05
# How long the answer to a repeated delivery waits for its consent and its reference to be stored.
TOLD_SECONDS = 0.5


class Calls:
    """Prepares and ends calls.

    `due` is set after each call has ended, because its agent must be put back. A call waits `asking_seconds`
    for how its agent speaks, then it goes on without; what is read while its voice is made counts as well.
    `now` tells the time, in Unix seconds.
    """

    def __init__(
        self,
        agents: Agents,
        voices: Voices,
        samples: Samples,
        store: Store,
        agent_settings: AgentSettings,
        *,
        identities: Identities,
        first_message: str,
        due: asyncio.Event,
        asking_seconds: float,
        now: Callable[[], float],
    ) -> None:
        self._agents = agents
        self._voices = voices
        self._samples = samples
        self._store = store
        self._agent_settings = agent_settings
        self._identities = identities
        self._first_message = first_message
        self._due = due
        self._asking_seconds = asking_seconds
        self._now = now
        self._deliveries = Deliveries()
        self._background = Background()

    async def begin(self, call: Call, sample: bytes, *, once_more: bool = False) -> Begun:
        """Notes a call that is to be prepared. Raises ConversationMismatch and RegistryUnavailable.

        A delivery that notes it `once_more` raises CallerForgotten if it is gone by now.

        Stores the call before its agent is read, so that all calls at one agent have one order. The answer
        holds how often the agent had been changed by then: `agents.intend` allows no change of the agent if
        it was changed since, or if another caller's call is in progress there.
        """
        call_id = self._identities.call_id(call.agent_id, "conversation_id", call.conversation_id)
        identity = await self._voices.identify(call.caller, sample, call_id=call_id)
        noted = await self._store.write_at(
            call.agent_id,
            calls.begin,
            NewCall(
                id=call_id,
                agent_id=call.agent_id,
                conversation_id=call.conversation_id,
                caller=identity.caller,
                number=identity.number,
                stated=identity.stated,
                person=identity.person,
                begun_at=self._now(),
                traceparent=traceparent(),
            ),
            others_since=self._agents.others_since(),
            consent=call.caller.consent,
            reference=call.caller.reference,
            once_more=once_more,
        )
        if noted is None:
            raise ConversationMismatch
        if noted.consented:
            log.info("consent given")
        return Begun(call=call, identity=identity, noted=noted)

    async def prepare(self, begun: Begun, sample: bytes, *, deadline: float) -> Prepared:
        """Finds or clones the caller's voice, and gives it to the agent if that harms no other call.

        Without a sample no voice is made: SampleRequired is raised if none is found.

        If the voice is gone before the agent has it, given up or lost by ElevenLabs, another one is found or
        made. A repeated delivery of a call that is still being prepared gets the answer of the first. Raises
        CallerForgotten, and what Voices, Samples and Agents raise.
        """
        counted = self._deliveries.counted(begun.key)
        try:
            with counted:
                return await self._prepare_once(begun, sample, deadline=deadline)
        finally:
            # While another delivery of the caller is under way, nobody else may have the call.
            if counted.last_and_failed:
                await self._unstate(begun)

    async def _prepare_once(self, begun: Begun, sample: bytes, *, deadline: float) -> Prepared:
        """While the caller's first delivery is under way, waits for it and gives the same answer."""
        first = self._deliveries.first(begun.key)
        if first is not None:
            if (prepared := await self._answer_of(first, begun, deadline=deadline)) is not None:
                return prepared
            self._voices.check_time(begun.wanted, deadline=deadline)
            begun = await self.begin(begun.call, sample, once_more=True)
        with self._deliveries.as_first(begun.key, waited=first is not None) as answer:
            prepared = await self._prepare(begun, sample, deadline=deadline)
            answer.set_result(prepared)
            return prepared

    async def _answer_of(self, first: UnderWay, begun: Begun, *, deadline: float) -> Prepared | None:
        """The answer of the delivery that came first, waited for; None if it fails or takes too long."""
        get_current_span().add_link(first.trace)
        left = deadline - asyncio.get_running_loop().time()
        with part("another_clone", links=[Link(first.trace)]):
            await asyncio.wait({first.answer}, timeout=max(0.0, left))
        if not first.answer.done() or first.answer.cancelled():
            return None
        answered = first.answer.result()
        noting = self._background.begin(self._voices.note_told(answered.voice, begun.wanted))
        # The answer is there, and does not wait for a registry that cannot be written.
        await asyncio.wait({noting}, timeout=TOLD_SECONDS)
        voice = noting.result() if noting.done() and not noting.exception() else answered.voice
        return msgspec.structs.replace(answered, voice=voice, voice_reused=True)

    async def _prepare(self, begun: Begun, sample: bytes, *, deadline: float) -> Prepared:
        if (ended := await self._answer_ended(begun)) is not None:
            return ended
        if (repeated := await self._answer_repeated(begun, deadline=deadline)) is not None:
            return repeated
        # The agent is read while the voice is looked for, so that no voice is made for an agent that does not
        # exist.
        until = asyncio.get_running_loop().time() + self._asking_seconds
        reading = Awaited(self._read_agent(begun.noted, deadline=deadline), until=until)
        known, refused = begun.noted.voice, False
        try:
            for again in range(ROUNDS):
                if again:
                    # The voice that was found was given up or lost. By now the caller may have another one:
                    # a replacement, or one that was cloned for another call.
                    known = await self._store.read(voices.find_by_caller, begun.identity.caller)
                found = await self._find_known(known, begun, attached=not again, deadline=deadline)
                if found is None:
                    found = await self._clone_new(begun, sample, reading, deadline=deadline)
                agent = await result_of(reading)
                try:
                    prepared = await self._give(begun, found, agent, deadline=deadline)
                except AgentRejected:
                    # Only once: if ElevenLabs denied every voice by mistake, each round would clone another.
                    if refused or not await self._is_gone(begun, found.voice, deadline=deadline):
                        raise
                    refused, prepared = True, None
                if prepared is not None:
                    return prepared
                remove_log_context("voice_id")
        finally:
            reading.cancel()
        raise Busy

    async def _read_agent(self, noted: Noted, *, deadline: float) -> Reading | Exception | None:
        """How the agent speaks now, or the failure that Agents raises.

        A failure that a task raises refers to whoever waits, who refers to the task: such a cycle would keep
        the sample.
        """
        try:
            return await self._agents.read(noted, deadline=deadline)
        except (AgentNotFound, RegistryUnavailable) as failure:
            return unraised(failure)

    async def _answer_ended(self, begun: Begun) -> Prepared | None:
        """The answer to a delivery after its call: nothing is made or changed for it any more."""
        if begun.noted.call.ended_at is None:
            return None
        voice = await self._voices.former_voice(begun.noted.call.marker, begun.wanted)
        if voice is None:
            return None
        voice = await self._voices.note_told(voice, begun.wanted)
        return self._answer(begun, voice, reused=True, missed=Missed.CALL_ENDED)

    async def _answer_repeated(self, begun: Begun, *, deadline: float) -> Prepared | None:
        """The answer to a delivery that is repeated during its call.

        None where ElevenLabs may say something else than it said before.
        """
        noted = begun.noted
        if not noted.again or noted.voice is None or noted.voice.state != "ready":
            return None
        voice = await self._voices.follow(noted.voice, begun.wanted, deadline=deadline, attached=True)
        wish = self._wish(begun, voice, deadline=deadline)
        decided = None if voice is None else self._agents.decided(noted, wish.voice)
        if voice is None or decided is None or await self._was_given_up(begun, voice, deadline=deadline):
            return None
        return self._answer(begun, voice, reused=True, missed=decided.missed)

    async def _find_known(
        self, known: VoiceRow | None, begun: Begun, *, attached: bool, deadline: float
    ) -> Found | None:
        """The voice of a known caller, waited for where it is on its way; None for a new caller."""
        voice = await self._voices.follow(known, begun.wanted, deadline=deadline, attached=attached)
        return None if voice is None else Found(voice, reused=True, agent_intended=None)

    async def _clone_new(
        self, begun: Begun, sample: bytes, reading: BegunReading, *, deadline: float
    ) -> Found:
        """The voice of a new caller; what its agent is to be given is stored together with the voice."""
        recording = await self._samples.inspect(sample, deadline=deadline)
        agent = await result_of(reading)
        update = self._agents.plan(agent, self._wish(begun, None, deadline=deadline))
        with_agent = msgspec.structs.replace(
            begun.wanted,
            agent_voice_id=agent and agent.now.voice_id,
            agent_update=None if isinstance(update, Missed) else update,
        )
        return await self._voices.find_or_clone(with_agent, recording, deadline=deadline)

    async def _give(
        self, begun: Begun, found: Found, agent: Reading | None, *, deadline: float
    ) -> Prepared | None:
        """Gives the agent the voice, and answers; None if the voice is gone since it was found."""
        add_log_context(voice_id=found.voice.voice_id)
        given = await self._agents.give(
            agent,
            self._wish(begun, found.voice, deadline=deadline),
            recorded=not found.reused,
            intended=found.agent_intended,
        )
        if given is None:
            return None
        read, missed = given.reading, given.missed
        before = None if read is None or missed is not None else agent_before(read.noted) or read.now
        return self._answer(begun, found.voice, reused=found.reused, missed=missed, before=before)

    async def _is_gone(self, begun: Begun, voice: Voice, *, deadline: float) -> bool:
        """Whether a voice that the agent refuses is gone: given up meanwhile, or lost by ElevenLabs."""
        if await self._was_given_up(begun, voice, deadline=deadline):
            return True
        row = await self._store.read(voices.get, voice.marker)
        return await self._voices.is_lost(row, deadline=deadline)

    async def _was_given_up(self, begun: Begun, voice: Voice, *, deadline: float) -> bool:
        """Whether a voice was given up since it was found for the call. Raises CallerForgotten."""
        stated = begun.identity.stated
        return await was_given_up(
            self._store, voice.marker, call_id=begun.call_id, stated=stated, deadline=deadline
        )

    async def _unstate(self, begun: Begun) -> None:
        """Takes back the caller of a call that failed, so that the next delivery may state another one.

        Waits for UNSTATE_SECONDS at most, so that the failure is answered in time.
        """
        task = self._background.begin_alone(
            self._store.write(calls.unstate, begun.call_id, stated=begun.identity.stated)
        )
        # If time runs out here, the answer is still the failure, which `prepare` then raises.
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({task}, timeout=UNSTATE_SECONDS)

    def refused_leaves(self, agent_id: str) -> frozenset[str] | None:
        """The overrides that the agent's own settings refuse; None where those were not seen."""
        return self._agent_settings.known(agent_id)

    async def complete(self, *, conversation_id: str, call_id: str, agent_id: str, voice_id: str) -> bool:
        """Ends a call, so that its agent is put back; False if nobody had asked about such a call.

        Raises RegistryUnavailable.
        """
        agent = agent_id
        if conversation_id and call_id and not agent:
            # A call stays at its agent, so the agent may be read before the transaction.
            known = await self._store.read(calls.latest, call_id=call_id)
            agent = "" if known is None else known.agent_id
        found = await self._store.write(
            calls.complete,
            conversation_id=conversation_id,
            call_id=call_id,
            agent_id=agent_id,
            voice_id=voice_id,
            conversation_call_id=self._identities.call_id(agent, "conversation_id", conversation_id),
            now=self._now(),
            traceparent=traceparent(),
        )
        if found is None:
            return False
        ids = ids_of(found, None)
        log.info("call ended", **ids, reason="reported")
        # An event may name a call by only one of its ids, or by a conversation id that no delivery had.
        add_log_context(**(ids | ({"conversation_id": conversation_id} if conversation_id else {})))
        self._due.set()
        return True

    async def finish(self, grace_seconds: float) -> None:
        """Waits for what answers did not wait for, and abandons what is left after the grace."""
        await self._background.finish(grace_seconds)

    def _greeting(self, begun: Begun) -> str:
        return callers.greeting(self._first_message, begun.call.caller.name)

    def _wish(self, begun: Begun, voice: Voice | None, *, deadline: float) -> Wish:
        """What the agent of the call is to be given; without a voice as long as there is none."""
        return Wish(
            call_id=begun.call_id,
            caller=begun.identity.caller,
            stated=begun.identity.stated,
            voice=AgentVoice(None if voice is None else voice.voice_id, self._greeting(begun)),
            marker="" if voice is None else voice.marker,
            deadline=deadline,
        )

    def _answer(
        self,
        begun: Begun,
        voice: Voice,
        *,
        reused: bool,
        missed: str | None,
        before: AgentVoice | None = None,
    ) -> Prepared:
        return Prepared(
            voice=voice,
            voice_reused=reused,
            agent_missed=missed,
            first_message=self._greeting(begun),
            call_id=begun.call_id,
            agent_before=begun.agent_before or before,
            refused_leaves=self.refused_leaves(begun.call.agent_id),
        )
