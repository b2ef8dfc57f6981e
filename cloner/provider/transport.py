"""Carries httpx's requests over aiohttp, which takes a third of the processor time that httpcore takes.

The library `httpx-aiohttp` (0.1) does the same, but reports a connection that broke after the upload as one
that was never made: a create would be sent twice. Once it tells the two apart, this module can go.

Failures are httpx's own exceptions, and distinguish a connection that was never made, after which nothing can
have been done, from one that broke or fell silent, after which it may have been.

    ConnectTimeout, ConnectError   nothing was sent
    ReadTimeout                    sent, and no answer in time
    ReadError                      sent, at least in part, and the connection broke
    RemoteProtocolError            sent, and what came is no HTTP
"""

import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import cache
from types import TracebackType
from typing import Self

import aiohttp
import httpx
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.connector import Connection
from aiohttp.tracing import Trace
from yarl import URL

__all__ = ["AiohttpTransport", "authorities"]

PIECE_BYTES = 65_536


@cache
def authorities() -> ssl.SSLContext:
    """The authorities that TLS trusts, read once: that takes 20 ms."""
    return httpx.create_ssl_context()


class AiohttpTransport(httpx.AsyncBaseTransport):
    """Opened and closed by the client that it is given to.

    It keeps connections open and does not bound how many there are, nor how long a request as a whole takes;
    of the time-outs it keeps those of connecting and of reading. Each request is sent once: one that meets a
    kept connection which the other side has just closed is a ReadError, as on any other connection.
    """

    def __init__(self, authorities: ssl.SSLContext) -> None:
        self._authorities = authorities
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=_Connector(ssl=self._authorities, limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            # httpx does that.
            auto_decompress=False,
            trust_env=False,
        )
        # aiohttp 3.14 sends a GET or DELETE again, at once and unseen, when its connection breaks, also a new
        # one. That is for the retry rule alone. The line can go once ClientSession has an option for it.
        self._session._retry_connection = False  # noqa: SLF001 - there is no public name for it
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self._session is None:
            raise RuntimeError("the client is not open")
        limits = request.extensions.get("timeout", {})
        with _told_as_httpx():
            response = await self._session.request(
                request.method,
                URL(str(request.url), encoded=True),
                headers=[
                    (name.decode("latin-1"), value.decode("latin-1"))
                    for name, value in request.headers.raw
                    if name.lower() != b"transfer-encoding"  # aiohttp sends a body in chunks by itself
                ],
                data=_body(request),
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(
                    sock_connect=limits.get("connect"), sock_read=limits.get("read")
                ),
            )
        return httpx.Response(
            response.status, headers=list(response.raw_headers), stream=_Stream(response), request=request
        )


class _Connector(aiohttp.TCPConnector):
    """Closes a kept connection on which something came that nobody had asked for.

    aiohttp 3.14 looks for that only when a connection is put back, and would take it for the answer to the
    next request. This can go once it also looks when a connection is taken out again.
    """

    async def _get(self, key: ConnectionKey, traces: list[Trace]) -> Connection | None:
        while (
            (kept := await super()._get(key, traces)) is not None
            and kept.protocol is not None
            and kept.protocol.should_close
        ):
            kept.close()
        return kept


class _Stream(httpx.AsyncByteStream):
    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _told_as_httpx():
            async for piece in self._response.content.iter_chunked(PIECE_BYTES):
                yield piece

    async def aclose(self) -> None:
        # The connection is kept if the answer was read to its end, and closed if not.
        self._response.release()


def _body(request: httpx.Request) -> bytes | httpx.AsyncByteStream | None:
    try:
        return request.content or None
    except httpx.RequestNotRead:
        return request.stream if isinstance(request.stream, httpx.AsyncByteStream) else None


@contextmanager
def _told_as_httpx() -> Iterator[None]:
    try:
        yield
    except (aiohttp.ClientError, TimeoutError) as failure:
        # aiohttp keeps a failure in objects that refer to each other, and with it the request, if it may.
        raise _kind_of(failure)("") from failure.with_traceback(None)


def _kind_of(failure: aiohttp.ClientError | TimeoutError) -> type[httpx.TransportError]:
    match failure:
        case aiohttp.ConnectionTimeoutError():
            return httpx.ConnectTimeout
        case aiohttp.ClientConnectorError():
            return httpx.ConnectError
        case TimeoutError():
            return httpx.ReadTimeout
        case aiohttp.ClientConnectionError() | aiohttp.ClientPayloadError():
            return httpx.ReadError
        case _:
            return httpx.RemoteProtocolError
