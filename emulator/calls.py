"""Calls: the provider asks one webhook how a call is to start, and reports its end to another.

    start   POST initiation_url, or data that came with the call -> judged -> in-progress, or failed
    end     POST post_call_url, once for each event -> done, or still failed

A webhook that does not answer, or not in time, is no exception here: at the start it is a fault of the
conversation, and at the end its status is 0.
"""

import asyncio
import copy
import logging
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from functools import cache
from typing import Annotated, Any

import httpx
import msgspec

from emulator.agents import DEMO_AGENT, Agents, Json, prefixed_id
from emulator.conversation import Conversation, Direction, Kind
from emulator.events import AUDIO, Event, event, signature
from emulator.judgement import NO_DATA, VARIABLES, filled, first_message, judge, voice_id
from emulator.voices import Voices

__all__ = ["PERSON", "Calls", "Conversation", "Webhooks"]

PERSON = "+31612345678"
LINE = "+31201234567"
TRANSCRIPTION = "post_call_transcription"
NOBODY = 0
MAX_CONVERSATIONS = 10_000
UNREACHABLE = (httpx.HTTPError, httpx.InvalidURL, TimeoutError)

URL = Annotated[str, msgspec.Meta(pattern="^https?://")]

logger = logging.getLogger("emulator")


class Webhooks(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The webhooks that the provider calls; nothing is sent where there is no URL."""

    initiation_url: URL | None = None
    initiation_headers: dict[str, str] = {}
    post_call_url: URL | None = None
    post_call_secret: str | None = None
    """Without one, events are not signed."""
    timeout_seconds: Annotated[float, msgspec.Meta(gt=0, le=600)] = 10.0
    """For the whole of one request."""

    def __repr__(self) -> str:
        """Neither headers nor secret."""
        return f"Webhooks(initiation_url={self.initiation_url!r}, post_call_url={self.post_call_url!r})"


class NotStarted(Exception):
    """The webhook gave no usable data; the message is a sentence."""


class Calls:
    """The last `MAX_CONVERSATIONS`, oldest first. `webhooks` may be replaced at any time."""

    def __init__(self, *, agents: Agents, voices: Voices, clock: Callable[[], float]) -> None:
        """Start with no conversation and no webhook."""
        self.webhooks = Webhooks()
        self._agents = agents
        self._voices = voices
        self._clock = clock
        self._conversations: dict[str, Conversation] = {}
        self._events: dict[str, dict[str, Event]] = {}

    def __iter__(self) -> Iterator[Conversation]:
        """All of them, those that are being prepared included."""
        return iter(tuple(self._conversations.values()))

    def __len__(self) -> int:
        """How many there are."""
        return len(self._conversations)

    def __contains__(self, conversation_id: object) -> bool:
        """Whether there is a conversation of that id."""
        return conversation_id in self._conversations

    def __getitem__(self, conversation_id: str) -> Conversation:
        """The conversation of that id, or `KeyError`."""
        return self._conversations[conversation_id]

    async def start(
        self,
        *,
        agent_id: str = DEMO_AGENT,
        kind: Kind = "twilio",
        direction: Direction = "inbound",
        external_number: str = PERSON,
        agent_number: str = LINE,
        tell_conversation_id: bool = True,
        client_data: Json | None = None,
    ) -> Conversation:
        """Start a conversation, and return once it speaks or failed; `KeyError` for an unknown agent.

        With `client_data` no webhook is asked, as in a call that the client itself makes.
        """
        agent = self._agents[agent_id]
        conversation = Conversation(
            conversation_id=prefixed_id("conv"),
            agent_id=agent_id,
            kind=kind,
            direction=direction,
            external_number=external_number,
            agent_number=agent_number,
            call_sid=f"CA{secrets.token_hex(16)}" if kind == "twilio" else "",
            call_id=secrets.token_hex(16) if kind == "sip" else "",
            started_at=self._clock(),
        )
        self._add(conversation)
        try:
            if client_data is not None:
                self._decide(conversation, copy.deepcopy(client_data))
            elif self.webhooks.initiation_url is not None and _asks_webhook(agent):
                body = conversation.request(tell_conversation_id=tell_conversation_id)
                self._decide(conversation, await _ask(self.webhooks, conversation, body))
            else:
                self._decide(conversation, NO_DATA)
        except NotStarted as error:
            conversation.faults = [str(error)]
        if conversation.faults:
            conversation.status = "failed"
        logger.info(
            "%s %s with %d faults; webhook %s",
            conversation.conversation_id,
            conversation.status,
            len(conversation.faults),
            conversation.webhook_status or "not answered",
        )
        return conversation

    async def end(
        self,
        conversation_id: str,
        *,
        events: Iterable[str] = (TRANSCRIPTION,),
        timestamp_as_text: bool = False,
        audio_mb: float = 1.0,
        echo: bool = True,
    ) -> list[int]:
        """End a conversation, and return how each event was answered: its HTTP status, 0 for not at all.

        An event that was sent before is sent again byte for byte, whatever the arguments, and signed anew.
        `KeyError` for an unknown conversation.
        """
        conversation = self[conversation_id]
        if conversation.status == "in-progress":
            conversation.status = "done"
        webhooks = self.webhooks
        sent = self._events.setdefault(conversation_id, {})
        statuses = []
        async with _client(webhooks) as http:
            for kind in events:
                if kind not in sent:
                    now = int(self._clock())
                    sent[kind] = event(
                        kind,
                        conversation,
                        self._agents.get(conversation.agent_id) or {},
                        stamp=str(now) if timestamp_as_text else now,
                        echo=echo,
                        audio_mb=audio_mb,
                    )
                status = await self._post(http, webhooks, kind, sent[kind])
                logger.info("%s %s %s", conversation_id, kind, status or "not answered")
                statuses.append(status)
        return statuses

    def _add(self, conversation: Conversation) -> None:
        self._conversations[conversation.conversation_id] = conversation
        if len(self) > MAX_CONVERSATIONS:
            oldest = next(iter(self._conversations))
            del self._conversations[oldest]
            self._events.pop(oldest, None)

    def _decide(self, conversation: Conversation, data: Any) -> None:
        """Accept the data, or say what is wrong with it; the agent counts as it is now."""
        agent = self._agents.get(conversation.agent_id)
        if agent is None:
            raise NotStarted("The agent is gone.")
        provided = conversation.provided_variables
        conversation.faults = judge(data, agent, self._voices, provided=provided)
        if conversation.faults:
            return
        conversation.client_data = None if data is NO_DATA else data
        conversation.dynamic_variables = data.get(VARIABLES, {})
        conversation.voice_id = voice_id(data, agent)
        variables = provided | conversation.dynamic_variables
        conversation.first_message = filled(first_message(data, agent), variables)

    async def _post(self, http: httpx.AsyncClient, webhooks: Webhooks, kind: str, content: Event) -> int:
        if webhooks.post_call_url is None:
            return NOBODY
        headers = {"content-type": "application/json"}
        if webhooks.post_call_secret is not None:
            # In a thread, since a recording may be large.
            headers["ElevenLabs-Signature"] = await asyncio.to_thread(
                signature, webhooks.post_call_secret, content, now=int(self._clock())
            )
        body = _streamed(content) if kind == AUDIO else content.head
        try:
            async with asyncio.timeout(webhooks.timeout_seconds):
                return (await http.post(webhooks.post_call_url, content=body, headers=headers)).status_code
        except UNREACHABLE:
            return NOBODY


def _asks_webhook(agent: Json) -> bool:
    overrides = agent["platform_settings"]["overrides"]
    return overrides.get("enable_conversation_initiation_client_data_from_webhook") is True


@cache
def _authorities() -> ssl.SSLContext:
    """The authorities that TLS trusts, read once: that takes 20 ms."""
    return httpx.create_ssl_context(trust_env=False)


def _client(webhooks: Webhooks) -> httpx.AsyncClient:
    return httpx.AsyncClient(verify=_authorities(), trust_env=False, timeout=webhooks.timeout_seconds)


async def _ask(webhooks: Webhooks, conversation: Conversation, body: Json) -> Any:
    """The JSON that the webhook answers. Raises `NotStarted` for anything else."""
    start = time.perf_counter()
    try:
        async with (
            asyncio.timeout(webhooks.timeout_seconds),
            _client(webhooks) as http,
        ):
            answer = await http.post(
                webhooks.initiation_url or "", json=body, headers=webhooks.initiation_headers
            )
    except (TimeoutError, httpx.TimeoutException):
        raise NotStarted(f"The webhook did not answer within {webhooks.timeout_seconds:g} s.") from None
    except UNREACHABLE as error:
        raise NotStarted(f"The webhook could not be reached: {type(error).__name__}.") from error
    finally:
        conversation.webhook_ms = (time.perf_counter() - start) * 1000
    conversation.webhook_status = answer.status_code
    conversation.webhook_body = answer.text
    if answer.status_code != 200:
        raise NotStarted(f"The webhook answered {answer.status_code}, not 200.")
    try:
        return msgspec.json.decode(answer.content)
    except (ValueError, RecursionError) as error:  # msgspec's own, text that is not UTF-8, too deep
        raise NotStarted("The webhook's answer is not JSON.") from error


async def _streamed(content: Event) -> AsyncIterator[bytes]:
    for piece in content:
        yield piece
