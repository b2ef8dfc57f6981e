"""One request to ElevenLabs and its answer, over httpx, within a time and a number of bytes.

The other side is not trusted to keep either: an answer is decoded once, in pieces, and given up at its
bound, and a redirection is not followed.
"""

import asyncio
import zlib

import httpx

from cloner.provider.failures import (
    FAIR_SECONDS,
    DeadlineTooShort,
    ProtocolBroken,
    TimedOut,
    Unavailable,
)

__all__ = ["exchange"]

CONNECT_SECONDS = 5.0
# Of an answer that is not a success no more is read; what is longer has no word of ElevenLabs' in it.
MAX_REFUSAL_BYTES = 65_536
# Backstop behind httpx's own time-outs, which hold for one phase of a request and not for the whole.
BACKSTOP_SECONDS = 0.03
GZIP_WINDOW = zlib.MAX_WBITS + 16
PIECE_BYTES = 65_536


class NotRead(Exception):
    """The answer is longer than it may be, or encoded in a way that was not asked for."""


async def exchange(
    http: httpx.AsyncClient, request: httpx.Request, *, deadline: float, most: int, changes: bool
) -> tuple[httpx.Response, bytes]:
    """The answer and its body, at most `most` bytes of it once it is decoded.

    `changes` says whether the request, once sent, may have been acted upon. Raises a ProviderFailure.
    The body of an answer that is no success is empty where it is too long.
    """
    left = deadline - asyncio.get_running_loop().time()
    if left <= 0:
        raise DeadlineTooShort
    # What is not asked for is not what is read below.
    request.headers["Accept-Encoding"] = "identity"
    request.extensions["timeout"] = httpx.Timeout(left, connect=min(left, CONNECT_SECONDS)).as_dict()
    try:
        async with asyncio.timeout_at(deadline + BACKSTOP_SECONDS):
            response = await http.send(request, stream=True, follow_redirects=False)
            try:
                body = await _read(response, most if response.is_success else MAX_REFUSAL_BYTES)
            except NotRead as failure:
                if response.is_success:
                    raise ProtocolBroken(maybe_done=changes) from failure
                body = b""
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
    except httpx.HTTPError as failure:
        raise ProtocolBroken(maybe_done=changes) from failure
    return response, body


async def _read(response: httpx.Response, most: int) -> bytes:
    encodings = [
        name.strip().lower() for name in response.headers.get_list("content-encoding", split_commas=True)
    ]
    match [name for name in encodings if name not in ("", "identity")]:
        case []:
            decoder = None
        case ["gzip" | "x-gzip"]:
            decoder = zlib.decompressobj(GZIP_WINDOW)
        case _:
            raise NotRead
    body = bytearray()
    received = 0
    async for piece in response.aiter_raw(PIECE_BYTES):
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
