"""examples/deliver.py, as a newcomer runs it."""

import asyncio
import json
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "deliver.py"
SECRET = "secret-of-the-webhook"
PAGE = "<html><head><title>404 Not Found</title></head></html>"


class Run(NamedTuple):
    """How it ended, and what it wrote."""

    status: int
    out: str
    err: str

    @property
    def answer(self) -> dict[str, object]:
        """The JSON of the last answer."""
        found: dict[str, object] = json.loads(self.out[self.out.rindex("\n{") :])
        return found


async def start(*arguments: object, secret: str | None = SECRET) -> asyncio.subprocess.Process:
    """The script, with a plain Python that knows none of our packages."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", str(SCRIPT), *map(str, arguments),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"], **({"ELEVENLABS_WEBHOOK_SECRET": secret} if secret else {})},
    )  # fmt: skip


async def run(*arguments: object, secret: str | None = SECRET) -> Run:
    """The script, until it ends. Whatever happened, it shows no traceback."""
    process = await start(*arguments, secret=secret)
    out, err = await process.communicate()
    assert b"Traceback" not in err, err.decode()
    return Run(process.returncode, out.decode(), err.decode())


@asynccontextmanager
async def front(to: str | None = None) -> AsyncIterator[str]:
    """Serves /webhook of that gateway alone, as the shipped nginx.conf does, and pages of HTML beside it."""

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if to and head.split(b" ")[1].startswith(b"/webhook"):
            host, _, port = to.removeprefix("http://").partition(":")
            back, onward = await asyncio.open_connection(host, int(port))
            onward.write(head.replace(b"Accept-Encoding", b"Connection: close\r\nAccept-Encoding"))
            sending = asyncio.ensure_future(pipe(reader, onward))
            await pipe(back, writer)
            sending.cancel()
            onward.close()
            return
        body = PAGE.encode()
        writer.write(
            b"HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\nConnection: close\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_first_try(running) -> None:
    """Health, a refusal and a voice, in this order, for the caller of the example."""
    async with running() as system:
        done = await run(system.http.base_url)

    assert 0 == done.status, done
    assert ["200", "401", "200"] == re.findall(r"^HTTP (\d+)", done.out, flags=re.MULTILINE)
    assert {"Name": "Ivan", "DateOfBirth": "11.12.2007"} == done.answer["caller_info"]
    assert not done.answer["voice_reused"]


@pytest.mark.parametrize("form", ["json", "multipart"])
async def test_own_recording(running, samples: Path, tmp_path: Path, form: str) -> None:
    """After the example's caller, an own recording is cloned; the same once more is known; each is a new conversation."""
    mine = tmp_path / "Anna.flac"
    mine.write_bytes((samples / "speech.flac").read_bytes())
    async with running() as system:
        url = system.http.base_url
        example = await run(url, "--form", form)
        first = await run(url, mine, "--form", form)
        again = await run(url, mine, "--form", form)
        told = await run(
            url, mine, "--form", form, "--name", "Ada", "--phone", "+31687654321",
            "--date-of-birth", "1815-12-10", "--conversation", "conv_mine", "--agent", "agent_demo",
        )  # fmt: skip

    assert [0, 0, 0, 0] == [each.status for each in (example, first, again, told)]
    voices = [each.answer["voice_id"] for each in (example, first, again, told)]
    assert 3 == len(set(voices))
    assert voices[1] == voices[2]
    assert [False, False, True, False] == [
        each.answer["voice_reused"] for each in (example, first, again, told)
    ]
    assert ["Ivan", "Anna", "Anna", "Ada"] == [
        each.answer["caller_info"]["Name"] for each in (example, first, again, told)
    ]
    assert 4 == len({each.answer["conversation_id"] for each in (example, first, again, told)})
    assert "conv_mine" == told.answer["conversation_id"]


async def test_consent(running) -> None:
    """A cloner that wants a consent gets it by an option."""
    async with running(of_cloner={"require_consent": True}) as system:
        without = await run(system.http.base_url)
        given = await run(system.http.base_url, "--consent", "form 17")

    assert (1, "CONSENT_MISSING") == (without.status, without.answer["reason"])
    assert 0 == given.status


async def test_behind_a_proxy(running) -> None:
    """A proxy that serves /webhook alone, and answers in HTML, is told so and is no obstacle."""
    async with running() as system, front(str(system.http.base_url)) as url:
        done = await run(f"{url}/webhook")

    assert 0 == done.status, done
    assert f"{url}/health answered text/html, not JSON" in done.out
    assert ["404", "401", "200"] == re.findall(r"^HTTP (\d+)", done.out, flags=re.MULTILINE)


async def test_not_the_gateway() -> None:
    """Somebody else's server, who answers in HTML, is told plainly."""
    async with front() as url:
        done = await run(url)

    assert 1 == done.status
    assert f"{url}/webhook answered text/html, not JSON: that was not the gateway" in done.out
    assert PAGE not in done.out


async def test_refused_early(running, tmp_path: Path) -> None:
    """A recording that is refused before it was sent to its end shows the answer, not the broken connection."""
    large = tmp_path / "large.wav"
    large.write_bytes(b"RIFF" + bytes(40_000_000))
    async with running() as system:
        done = await run(system.http.base_url, large)

    assert (1, "BODY_TOO_LARGE") == (done.status, done.answer["reason"])


async def test_mistakes(tmp_path: Path) -> None:
    """Each mistake is one line that names it, and exit status 2."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = taken.getsockname()[1]
    missing = tmp_path / "missing.mp3"
    mistakes = {
        str(missing): await run("http://127.0.0.1:9", missing),
        str(tmp_path): await run("http://127.0.0.1:9", tmp_path),
        f"http://127.0.0.1:{free}/health cannot be reached: Connection refused": await run(
            f"http://127.0.0.1:{free}"
        ),
        "http://nobody.invalid/health cannot be reached": await run("http://nobody.invalid"),
        "'localhost:3005'": await run("localhost:3005"),
        "'http://localhost:port'": await run("http://localhost:port"),
        "'ftp://localhost'": await run("ftp://localhost"),
        "''": await run(""),
        "ELEVENLABS_WEBHOOK_SECRET": await run(secret=None),
        "--loud": await run("--loud"),
    }

    for named, done in mistakes.items():
        assert 2 == done.status, done
        assert named in done.err.strip().splitlines()[-1]


async def test_help() -> None:
    """It explains itself, without a secret."""
    done = await run("--help", secret=None)

    assert 0 == done.status
    assert all(
        option in done.out for option in ("--name", "--phone", "--conversation", "--form", "URL", "RECORDING")
    )


async def test_not_http() -> None:
    """A server of another kind, and one that says nothing and leaves, are told in one line."""

    async def chatter(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
        writer.close()

    async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    for behave in (chatter, leave):
        async with await asyncio.start_server(behave, "127.0.0.1", 0) as server:
            done = await run(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")

        assert 2 == done.status
        assert 1 == len(done.err.splitlines())


async def test_ctrl_c() -> None:
    """Interrupted while it waits for an answer, it ends without a complaint."""
    asked, left = asyncio.Event(), asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await reader.read()
        writer.close()
        left.set()

    async with await asyncio.start_server(hang, "127.0.0.1", 0) as server:
        process = await start(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        await asked.wait()
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
        await left.wait()

    assert (130, b"") == (process.returncode, err)
