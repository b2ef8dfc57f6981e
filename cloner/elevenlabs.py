"""The part of the ElevenLabs API that a clone needs, over httpx.

Every method takes the `deadline` on the event loop's clock, ends before it, and raises a
ProviderFailure and nothing else. Reads, agent updates and deletions are tried again here, under the
one retry rule; `create_voice` is sent once, because only whoever knows its marker can tell whether
a second one is safe.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from cloner import failures
from cloner.failures import (
    FAIR_SECONDS,
    Busy,
    DeadlineTooShort,
    ProtocolBroken,
    ProviderFailure,
    TimedOut,
    Unavailable,
)
from cloner.retry import retrying
from cloner.turns import Turns

__all__ = ["Agent", "AgentVoice", "ElevenLabs", "ListedVoice", "NewVoice", "VoicePage"]

T = TypeVar("T")

CONNECT_SECONDS = 5.0
READ_SECONDS = 10.0  # for one try of a read, an agent update or a deletion
MAX_ANSWER_BYTES = 8 * 1_048_576
# A piece of the upload: a larger one would be encrypted in one go while the loop waits.
PIECE_BYTES = 262_144
# What we would override in a conversation.
OVERRIDES = ("tts.voice_id", "agent.first_message")
# Backstop behind httpx's own time-outs, which hold for one phase of a request and not for the whole.
BACKSTOP_SECONDS = 0.03


class NewVoice(msgspec.Struct, frozen=True):
    """The answer to a create."""

    voice_id: str
    requires_verification: bool = False


class Verification(msgspec.Struct, frozen=True):
    """Whether somebody must show that a voice is theirs."""

    requires_verification: bool = False
    is_verified: bool = False


class ListedVoice(msgspec.Struct, frozen=True):
    """A voice as the provider lists it."""

    voice_id: str
    name: str | None = None
    labels: dict[str, str | None] | None = None
    description: str | None = None
    created_at_unix: int | None = None
    voice_verification: Verification | None = None

    @property
    def requires_verification(self) -> bool:
        """Whether the voice may not speak yet."""
        told = self.voice_verification
        return told is not None and told.requires_verification and not told.is_verified


class VoicePage(msgspec.Struct, frozen=True):
    """One page of a search."""

    voices: list[ListedVoice]
    has_more: bool = False
    next_page_token: str | None = None


class AgentVoice(msgspec.Struct, frozen=True):
    """How an agent speaks."""

    voice_id: str | None
    first_message: str | None


class Agent(msgspec.Struct, frozen=True):
    """How an agent speaks, and which overrides of a conversation its own settings refuse."""

    voice: AgentVoice
    refused: frozenset[str]


class _Tts(msgspec.Struct):
    voice_id: str | None = None


class _Speech(msgspec.Struct):
    first_message: str | None = None


class _Config(msgspec.Struct):
    tts: _Tts | None = None
    agent: _Speech | None = None


class _Agent(msgspec.Struct):
    conversation_config: _Config
    platform_settings: object = None


class _Subscription(msgspec.Struct):
    next_character_count_reset_unix: int | None = None


class ElevenLabs:
    """Speaks to ElevenLabs with a client that it is given and does not close.

    At most `concurrency` requests are under way; others wait, calls first, under the rules of Turns.
    """

    def __init__(self, http: httpx.AsyncClient, *, attempts: int, concurrency: int, queue: int) -> None:
        self._http = http
        self._attempts = attempts
        self._turns = Turns(concurrency, queue)

    @property
    def full(self) -> bool:
        """Whether the next request would have to wait for its turn."""
        return self._turns.full

    async def create_voice(
        self,
        *,
        name: str,
        description: str,
        labels: dict[str, str],
        filename: str,
        media_type: str,
        sample: bytes,
        deadline: float,
        resent: int = 0,
        sending: Callable[[], None] = lambda: None,
    ) -> NewVoice:
        """Clones a voice from the sample. Sent once; see `maybe_done` of what it raises.

        `sending` is called when its turn has come and it is about to be sent.
        """
        boundary, length, body = _form(
            {"name": name, "description": description, "labels": msgspec.json.encode(labels).decode()},
            filename=filename,
            media_type=media_type,
            sample=sample,
        )
        request = self._http.build_request(
            "POST",
            "/v1/voices/add",
            content=body,
            headers={
                "Content-Type": f"multipart/form-data; boundary={boundary}",
                "Content-Length": str(length),
            },
            extensions={"url_template": "/v1/voices/add", "resend_count": resent},
        )
        answer = await self._send(
            request,
            deadline,
            refused=failures.SampleRejected,
            missing=ProtocolBroken,
            changes=True,
            sending=sending,
        )
        return _decode(answer, NewVoice, changes=True)

    async def get_voice(self, voice_id: str, *, deadline: float) -> ListedVoice:
        """Reads one voice; VoiceNotFound if there is none."""
        answer = await self._tried(
            "GET", "/v1/voices/{voice_id}", deadline, {"voice_id": voice_id},
            refused=failures.VoiceNotFound, missing=failures.VoiceNotFound,
        )  # fmt: skip
        return _decode(answer, ListedVoice)

    async def search_voices(
        self, search: str, *, deadline: float, page_size: int = 10, page_token: str | None = None
    ) -> VoicePage:
        """One page, newest first, of the cloned voices whose name, description or labels hold the text."""
        params: dict[str, str | int] = {
            "search": search, "category": "cloned", "page_size": page_size,
            "sort": "created_at_unix", "sort_direction": "desc", "include_total_count": "false",
        }  # fmt: skip
        if page_token:
            params["next_page_token"] = page_token
        answer = await self._tried(
            "GET", "/v2/voices", deadline, {}, refused=ProtocolBroken, missing=ProtocolBroken, params=params
        )
        return _decode(answer, VoicePage)

    async def delete_voice(self, voice_id: str, *, deadline: float) -> None:
        """Deletes a voice. One that is already gone counts as deleted."""
        try:
            await self._tried(
                "DELETE", "/v1/voices/{voice_id}", deadline, {"voice_id": voice_id},
                refused=ProtocolBroken, missing=failures.VoiceNotFound,
            )  # fmt: skip
        except failures.VoiceNotFound:
            return

    async def read_agent(self, agent_id: str, *, deadline: float) -> Agent:
        """How the agent speaks now, and what it lets be overridden; AgentNotFound if there is none."""
        answer = await self._tried(
            "GET", "/v1/convai/agents/{agent_id}", deadline, {"agent_id": agent_id},
            refused=failures.AgentNotFound, missing=failures.AgentNotFound,
        )  # fmt: skip
        agent = _decode(answer, _Agent)
        return Agent(_spoken(agent), _refused(agent))

    async def update_agent(self, agent_id: str, wanted: AgentVoice, *, deadline: float) -> AgentVoice:
        """Gives the agent a voice, a greeting or both, and touches nothing else of it."""
        config: dict[str, dict[str, str]] = {}
        if wanted.voice_id is not None:
            config["tts"] = {"voice_id": wanted.voice_id}
        if wanted.first_message is not None:
            config["agent"] = {"first_message": wanted.first_message}
        answer = await self._tried(
            "PATCH", "/v1/convai/agents/{agent_id}", deadline, {"agent_id": agent_id},
            refused=failures.AgentRejected, missing=failures.AgentNotFound,
            json={"conversation_config": config},
        )  # fmt: skip
        return _spoken(_decode(answer, _Agent))

    async def month_resets_at(self, *, deadline: float) -> int | None:
        """When the monthly counters start again, in Unix seconds, if ElevenLabs tells."""
        answer = await self._tried(
            "GET", "/v1/user/subscription", deadline, {}, refused=ProtocolBroken, missing=ProtocolBroken
        )
        return _decode(answer, _Subscription).next_character_count_reset_unix

    async def _tried(
        self,
        method: str,
        template: str,
        deadline: float,
        ids: dict[str, str],
        *,
        refused: type[ProviderFailure],
        missing: type[ProviderFailure],
        **content: Any,
    ) -> bytes:
        path = template.format_map({name: quote(value, safe="") for name, value in ids.items()})

        async def attempt(resent: int) -> bytes:
            request = self._http.build_request(
                method, path, extensions={"url_template": template, "resend_count": resent}, **content
            )
            one = min(deadline, asyncio.get_running_loop().time() + READ_SECONDS)
            return await self._send(request, one, refused=refused, missing=missing, changes=method != "GET")

        return await retrying(
            attempt, (Busy, Unavailable, TimedOut), attempts=self._attempts, deadline=deadline
        )

    async def _send(
        self,
        request: httpx.Request,
        deadline: float,
        *,
        refused: type[ProviderFailure],
        missing: type[ProviderFailure],
        changes: bool,
        sending: Callable[[], None] = lambda: None,
    ) -> bytes:
        """The body of a successful answer, asked for when it is this request's turn."""
        async with self._turns.one(deadline):
            sending()
            response, body = await self._exchange(request, deadline, changes=changes)
        if response.is_success:
            return body
        raise failures.classify(
            response.status_code, response.headers, body, refused=refused, missing=missing
        )

    async def _exchange(
        self, request: httpx.Request, deadline: float, *, changes: bool
    ) -> tuple[httpx.Response, bytes]:
        """The one place where httpx is touched and its errors end."""
        left = deadline - asyncio.get_running_loop().time()
        if left <= 0:
            raise DeadlineTooShort
        request.extensions["timeout"] = httpx.Timeout(left, connect=min(left, CONNECT_SECONDS)).as_dict()
        try:
            async with asyncio.timeout_at(deadline + BACKSTOP_SECONDS):
                response = await self._http.send(request, stream=True)
                try:
                    body = await _read(response)
                finally:
                    await response.aclose()
        except httpx.PoolTimeout as failure:
            raise Busy from failure
        except (httpx.ConnectError, httpx.ConnectTimeout) as failure:
            cut = isinstance(failure, httpx.ConnectTimeout) and left < FAIR_SECONDS
            raise (DeadlineTooShort if cut else Unavailable) from failure
        except (httpx.TimeoutException, TimeoutError) as failure:
            raise TimedOut(maybe_done=changes) from failure
        except httpx.TransportError as failure:
            raise Unavailable(maybe_done=changes) from failure
        except httpx.HTTPError as failure:
            raise ProtocolBroken(maybe_done=changes) from failure
        return response, body


async def _read(response: httpx.Response) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise httpx.DecodingError("answer too large", request=response.request)
    return bytes(body)


def _decode(body: bytes, kind: type[T], *, changes: bool = False) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as failure:
        raise ProtocolBroken(maybe_done=changes) from failure


def _refused(agent: _Agent) -> frozenset[str]:
    """The leaves that are off. They are unless switched on; where nothing is told, nothing is known."""
    allowed = _below(agent.platform_settings, "overrides", "conversation_config_override")
    if not isinstance(allowed, dict):
        return frozenset()
    return frozenset(leaf for leaf in OVERRIDES if _below(allowed, *leaf.split(".")) is not True)


def _below(tree: object, *path: str) -> object:
    for name in path:
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


def _spoken(agent: _Agent) -> AgentVoice:
    config = agent.conversation_config
    return AgentVoice(
        voice_id=config.tts.voice_id if config.tts else None,
        first_message=config.agent.first_message if config.agent else None,
    )


def _form(
    texts: dict[str, str], *, filename: str, media_type: str, sample: bytes
) -> tuple[str, int, AsyncIterator[bytes]]:
    """A multipart form: its boundary, its length, and its body in pieces, the sample not copied whole."""
    boundary = secrets.token_hex(16)
    head = "".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{text}\r\n'
        for name, text in texts.items()
    )
    head += (
        f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{filename}"\r\n'
        f"Content-Type: {media_type}\r\n\r\n"
    )
    first, last = head.encode(), f"\r\n--{boundary}--\r\n".encode()

    async def pieces() -> AsyncIterator[bytes]:
        yield first
        for start in range(0, len(sample), PIECE_BYTES):
            yield sample[start : start + PIECE_BYTES]
        yield last

    return boundary, len(first) + len(sample) + len(last), pieces()
