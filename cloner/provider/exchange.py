"""One request to ElevenLabs and its answer, within a time and a number of bytes.

The other side is not trusted to respect these bounds: an answer is decoded once, in pieces, and given up at
its bound, and a redirection is not followed. Requests go directly to an httpx transport. We need nothing of
what httpx's client adds for cookies, redirections, authentication and proxies, and it took half of the
processor time of a request.
"""

import asyncio
import zlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import httpx

from cloner.provider.endpoints import Endpoint
from cloner.provider.failures import (
    FAIR_SECONDS,
    DeadlineTooShort,
    ProtocolBroken,
    ProviderFailure,
    TimedOut,
    Unavailable,
)
from telemetry.http_client import fail

__all__ = ["Api"]

T = TypeVar("T")

CONNECT_SECONDS = 5.0
# How much is read of an error answer; a longer one is not ElevenLabs' own.
MAX_REFUSAL_BYTES = 65_536
# A backstop behind httpx's time-outs, which hold for one phase of a request and not for the whole.
BACKSTOP_SECONDS = 0.03
GZIP_WINDOW = zlib.MAX_WBITS + 16


class NotRead(Exception):
    """The answer is longer than it may be, or encoded in a way that was not asked for."""


class Api:
    """ElevenLabs' address and our key for it, over a transport that is open for as long as this is used."""

    def __init__(self, transport: httpx.AsyncBaseTransport, *, base_url: str, api_key: str) -> None:
        self._transport = transport
        self._base_url = base_url.rstrip("/")
        self._headers = {
            "xi-api-key": api_key,
            "User-Agent": "precall",
            "Accept": "application/json",
            # An encoding that was not asked for is not decoded below.
            "Accept-Encoding": "identity",
        }

    def request(
        self,
        endpoint: Endpoint,
        *,
        path: str | None = None,
        resent: int = 0,
        headers: Mapping[str, str] | None = None,
        **content: Any,
    ) -> httpx.Request:
        """A request with content as httpx takes it. A template with ids needs the path that it becomes."""
        return httpx.Request(
            endpoint.method,
            self._base_url + (path or endpoint.template),
            headers={**self._headers, **(headers or {})},
            extensions={"url_template": endpoint.template, "resend_count": resent},
            **content,
        )

    async def exchange(
        self,
        request: httpx.Request,
        *,
        deadline: float,
        most: int,
        changes: bool,
        read: Callable[[bytes], T],
        refusal: Callable[[httpx.Response, bytes], ProviderFailure],
    ) -> T:
        """What is `read` in the body of the answer, at most `most` bytes of it once it is decoded.

        `changes` says that the request changes something, so that after a failure it may have been done.
        Raises a ProviderFailure, for an error answer its `refusal`. If the body of one is too long, it counts
        as empty. If an answer cannot be read, the request's span fails.
        """
        left = deadline - asyncio.get_running_loop().time()
        if left <= 0:
            raise DeadlineTooShort
        request.extensions["timeout"] = {"connect": min(left, CONNECT_SECONDS), "read": left}
        try:
            async with asyncio.timeout_at(deadline + BACKSTOP_SECONDS):
                response = await self._transport.handle_async_request(request)
                try:
                    if not response.is_success:
                        raise refusal(response, await _read_refusal(response))
                    try:
                        return read(await _read(response, most))
                    except (NotRead, ProtocolBroken) as failure:
                        fail(response, ProtocolBroken.reason)
                        raise ProtocolBroken(maybe_done=changes) from failure
                finally:
                    await response.aclose()
        except (httpx.ConnectError, httpx.ConnectTimeout) as failure:
            cut = isinstance(failure, httpx.ConnectTimeout) and left < FAIR_SECONDS
            raise (DeadlineTooShort if cut else Unavailable) from failure
        except (httpx.TimeoutException, TimeoutError) as failure:
            raise TimedOut(maybe_done=changes) from failure
        except httpx.RemoteProtocolError as failure:
            raise ProtocolBroken(maybe_done=changes) from failure
        except httpx.TransportError as failure:
            raise Unavailable(maybe_done=changes) from failure


async def _read_refusal(response: httpx.Response) -> bytes:
    try:
        return await _read(response, MAX_REFUSAL_BYTES)
    except NotRead:
        return b""


async def _read(response: httpx.Response, most: int) -> bytes:
    encodings = response.headers.get_list("content-encoding", split_commas=True)
    match [name for encoding in encodings if (name := encoding.lower()) not in ("", "identity")]:
        case []:
            decoder = None
        case ["gzip" | "x-gzip"]:
            decoder = zlib.decompressobj(GZIP_WINDOW)
        case _:
            raise NotRead
    body = bytearray()
    received = 0
    async for piece in cast("httpx.AsyncByteStream", response.stream):
        received += len(piece)
        try:
            # One byte more than there may be is enough to know.
            body += decoder.decompress(piece, most + 1 - len(body)) if decoder is not None else piece
        except zlib.error as failure:
            raise NotRead from failure
        if len(body) > most or received > most:
            raise NotRead
    if decoder is not None and not decoder.eof:
        raise NotRead
    return bytes(body)
