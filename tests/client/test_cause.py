"""What is in the way of a connection, as gRPC tells it, over real sockets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import precall_client
import pytest
import trustme
from precall_client import Tls, connect
from precall_client.cause import cause_of

from environment import Pem


async def cause(target: str, tls: Tls | None = None) -> str:
    """Why a cloner is not reached."""
    async with connect(target, tls=tls) as precall:
        with pytest.raises(precall_client.ClonerUnavailable) as failed:
            await precall.list_voices(seconds=20)
    return failed.value.cause


@asynccontextmanager
async def answering(said: bytes) -> AsyncIterator[str]:
    """Where a listener says this to whoever has sent something, and closes the connection."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(said)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


def certified(authority: trustme.CA, name: str) -> dict[str, Pem]:
    """What a cloner needs to show a certificate for the name."""
    issued = authority.issue_cert(name)
    chain = b"".join(each.bytes() for each in issued.cert_chain_pems)
    return {
        "cloner_tls_cert": Pem(chain.decode()),
        "cloner_tls_key": Pem(issued.private_key_pem.bytes().decode()),
    }


async def test_nobody() -> None:
    """Nobody listens there, or somebody who speaks something else."""
    assert "connection refused" == await cause("127.0.0.1:1")
    async with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as target:
        assert "no gRPC spoken there" == await cause(target)
    async with answering(b"") as target:
        assert "connection closed" == await cause(target)


async def test_tls(cloning: Any, tmp_path: Path) -> None:
    """TLS is spoken on one side alone, or the certificate is not the one that it should be."""
    authority = trustme.CA()
    root = authority.cert_pem.bytes()
    (tmp_path / "ca.pem").write_bytes(root)
    trusting = Tls(ca=tmp_path / "ca.pem")
    async with cloning() as cloner:
        assert "no TLS spoken there" == await cause(f"127.0.0.1:{cloner.port}", trusting)
    async with cloning(**certified(authority, "somewhere.test")) as cloner:
        target = f"127.0.0.1:{cloner.port}"
        assert "connection closed" == await cause(target)
        assert "certificate of another host" == await cause(target, trusting)
        assert "certificate not trusted" == await cause(target, Tls(ca=trustme.CA().cert_pem.bytes()))


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        (
            "errors resolving cloner:50051: [field:hostname lookup error:address lookup failed for cloner:50051]",
            "host name not found",
        ),
        ("failed to connect to all addresses; last error: UNKNOWN: No route to host", "host not reachable"),
        ("something with a secret in it", ""),
        ("", ""),
        (None, ""),
    ],
)
def test_texts(text: str | None, meaning: str) -> None:
    """What no test may bring about, and what nobody knows, which is not repeated."""
    assert meaning == cause_of(text)
