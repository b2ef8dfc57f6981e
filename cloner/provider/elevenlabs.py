"""The part of the ElevenLabs API that a clone needs.

Every method takes the `deadline` on the event loop's clock, ends before it, and raises a ProviderFailure and
nothing else. Reads, agent updates and deletions are tried again here, under the one retry rule.
`create_voice` is sent once: only its caller knows the marker, and can find out whether a second one is safe.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, TypeVar

import httpx
import msgspec
import structlog

from callerid import identifier
from cloner.measures import UNMEASURED, Measures
from cloner.provider import answers, endpoints, failures
from cloner.provider.answers import Agent, AgentVoice, ListedVoice, NewVoice, Subscription, VoicePage
from cloner.provider.endpoints import Endpoint
from cloner.provider.exchange import Api
from cloner.provider.failures import Busy, ProtocolBroken, ProviderFailure, TimedOut, Unavailable
from cloner.provider.refusal_log import ACT_NOW, log_refusal
from cloner.provider.retry import retrying
from cloner.provider.turns import Queue, Turns
from telemetry.parts import part

__all__ = ["Agent", "AgentVoice", "ElevenLabs", "ListedVoice", "NewVoice", "VoicePage"]

log = structlog.get_logger()

T = TypeVar("T")

READ_SECONDS = 10.0  # for one try of a read, an agent update or a deletion
# The longest answers that are read: a few words, one voice or the account, an agent with its prompt and
# tools, a page of a hundred voices.
SHORT_BYTES, ONE_BYTES, AGENT_BYTES, PAGE_BYTES = 65_536, 1_048_576, 4 * 1_048_576, 8 * 1_048_576
# ElevenLabs' words for something that does not exist.
NOTHING: Mapping[str, type[ProviderFailure]] = {}
NO_VOICE = {"voice_not_found": failures.VoiceNotFound}
NO_AGENT = {"agent_not_found": failures.AgentNotFound}
# The sample is uploaded in pieces, because the loop waits while TLS encrypts a piece.
PIECE_BYTES = 262_144


class ElevenLabs:
    """Speaks to ElevenLabs over a transport that it is given and does not close.

    At most `concurrency` requests are under way; others wait, calls first, under the rules of Turns.
    """

    def __init__(
        self,
        api: Api,
        *,
        attempts: int,
        concurrency: int,
        queue: int,
        measures: Measures = UNMEASURED,
    ) -> None:
        self._api = api
        self._attempts = attempts
        self._turns = Turns(concurrency, queue, measures)
        self._measures = measures
        measures.expect_requests(
            [each.operation for each in endpoints.ENDPOINTS], [failure.reason for failure in ACT_NOW]
        )

    @property
    def full(self) -> bool:
        """Whether the next create would have to wait for its turn."""
        return self._turns.full

    @property
    def queue(self) -> Queue:
        """How many requests are under way, and how many wait."""
        return self._turns.queue

    def turn(self, deadline: float, *, declinable: bool = False) -> AbstractAsyncContextManager[None]:
        """A turn to send one create, as `Turns.one` gives it.

        Raises OwnQueueFull, and Overloaded if declinable.
        """
        return self._turns.one(deadline, kind="create", declinable=declinable, lasting=True)

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
    ) -> NewVoice:
        """Clones a voice from the sample, within a `turn`. The request is sent once.

        After a failure with `maybe_done` the voice may exist.
        """
        boundary, length, body = _form(
            {"name": name, "description": description, "labels": msgspec.json.encode(labels).decode()},
            filename=filename,
            media_type=media_type,
            sample=sample,
        )
        request = self._api.request(
            endpoints.CREATE_VOICE,
            resent=resent,
            content=body,
            headers={
                "Content-Type": f"multipart/form-data; boundary={boundary}",
                "Content-Length": str(length),
            },
        )
        return await self._send(
            endpoints.CREATE_VOICE, request, deadline, answers.read_new_voice,
            most=SHORT_BYTES, refused=failures.SampleRejected, gone=NOTHING,
        )  # fmt: skip

    async def get_voice(self, voice_id: str, *, deadline: float) -> ListedVoice:
        """Reads one voice; VoiceNotFound if ElevenLabs says that there is none."""
        return await self._tried(
            endpoints.GET_VOICE, deadline, {"voice_id": voice_id},
            read=partial(answers.read_voice, voice_id=voice_id), most=ONE_BYTES, gone=NO_VOICE,
        )  # fmt: skip

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
        return await self._tried(
            endpoints.LIST_VOICES, deadline, {},
            read=partial(answers.read_page, most=page_size), most=PAGE_BYTES, params=params,
        )  # fmt: skip

    async def delete_voice(self, voice_id: str, *, deadline: float) -> None:
        """Deletes a voice. A voice that does not exist, as ElevenLabs says itself, counts as deleted."""
        try:
            await self._tried(
                endpoints.DELETE_VOICE, deadline, {"voice_id": voice_id},
                read=answers.read_deleted, most=SHORT_BYTES, gone=NO_VOICE,
            )  # fmt: skip
        except failures.VoiceNotFound:
            return

    async def read_agent(self, agent_id: str, *, deadline: float) -> Agent:
        """How the agent speaks now, and which overrides it refuses.

        AgentNotFound if ElevenLabs says that there is none.
        """
        return await self._tried(
            endpoints.GET_AGENT, deadline, {"agent_id": agent_id},
            read=partial(answers.read_agent, agent_id=agent_id), most=AGENT_BYTES, gone=NO_AGENT,
        )  # fmt: skip

    async def update_agent(
        self, agent_id: str, wanted: AgentVoice, *, deadline: float
    ) -> tuple[AgentVoice, bool]:
        """Gives the agent a voice, a greeting or both, and changes nothing else.

        Returns what it has then, and whether an earlier try got no answer, so that it may be done after this.
        ProtocolBroken if ElevenLabs changed another branch than the main one, which is what calls get.
        """
        config: dict[str, dict[str, str]] = {}
        if wanted.voice_id is not None:
            config["tts"] = {"voice_id": wanted.voice_id}
        if wanted.first_message is not None:
            config["agent"] = {"first_message": wanted.first_message}
        unanswered: list[bool] = []
        after = await self._tried(
            endpoints.UPDATE_AGENT, deadline, {"agent_id": agent_id},
            read=partial(answers.read_agent, agent_id=agent_id), most=AGENT_BYTES,
            failed=lambda failure: unanswered.append(failure.unanswered),
            refused=failures.AgentRejected,
            gone={**NO_AGENT, "voice_not_found": failures.AgentRejected},
            json={"conversation_config": config},
        )  # fmt: skip
        if after.voice is None:
            raise ProtocolBroken(maybe_done=True)
        if not after.on_main_branch:
            log.warning("agent changed on a branch that is not its main one", agent_id=agent_id)
            raise ProtocolBroken
        return after.voice, any(unanswered)

    async def subscription(self, *, deadline: float) -> Subscription:
        """How much of the account is used."""
        return await self._tried(
            endpoints.GET_SUBSCRIPTION, deadline, {}, read=answers.read_subscription, most=ONE_BYTES
        )

    async def _tried(
        self,
        endpoint: Endpoint,
        deadline: float,
        ids: dict[str, str],
        *,
        read: Callable[[bytes], T],
        most: int,
        refused: type[ProviderFailure] = ProtocolBroken,
        gone: Mapping[str, type[ProviderFailure]] = NOTHING,
        failed: Callable[[ProviderFailure], None] = lambda _: None,
        **content: Any,
    ) -> T:
        path = _path(endpoint.template, ids)

        async def attempt(resent: int) -> T:
            request = self._api.request(endpoint, path=path, resent=resent, **content)
            one = min(deadline, asyncio.get_running_loop().time() + READ_SECONDS)
            async with self._turns.one(one, kind=endpoint.operation):
                try:
                    return await self._send(
                        endpoint, request, one, read, most=most, refused=refused, gone=gone
                    )
                except ProviderFailure as failure:
                    failed(failure)
                    raise

        return await retrying(
            attempt,
            (Busy, Unavailable, TimedOut),
            attempts=self._attempts,
            deadline=deadline,
            retried=partial(self._measures.provider_retried, endpoint.operation),
        )

    async def _send(
        self,
        endpoint: Endpoint,
        request: httpx.Request,
        deadline: float,
        read: Callable[[bytes], T],
        *,
        most: int,
        refused: type[ProviderFailure],
        gone: Mapping[str, type[ProviderFailure]],
    ) -> T:
        """What is read in a successful answer. The failure of an unreadable one may say `maybe_done`."""
        changes = endpoint.method != "GET"
        try:
            with part("provider"):
                answer = await self._api.exchange(
                    request, deadline=deadline, most=most, changes=changes, read=read,
                    refusal=lambda response, body: failures.classify(
                        response.status_code, response.headers, body, refused=refused, gone=gone
                    ),
                )  # fmt: skip
        except ProviderFailure as failure:
            log_refusal(endpoint.operation, failure)
            self._measures.provider_asked(endpoint.operation, "error", failure.reason)
            raise
        self._measures.provider_asked(endpoint.operation, "success", "")
        return answer


def _path(template: str, ids: dict[str, str]) -> str:
    """A path of the API. An id that does not fit is refused: the path could mean something else."""
    if not all(map(identifier, ids.values())):
        raise ProtocolBroken
    return template.format_map(ids)


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
