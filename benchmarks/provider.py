"""`python -m benchmarks.provider`: stands in for ElevenLabs where only the time of the others counts.

It reads what it is sent without looking at most of it, and answers at once, for a small part of what that
costs the emulator. It makes a voice of everything and knows every agent, and what that was given. Spans that
are sent to it are taken and dropped.

    POST /hold      voices are made, but the answers kept back
    POST /release   the answers that were kept back leave
    GET /held       how many there are
"""

import asyncio
import itertools
import json
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

import uvloop

__all__: list[str] = []

READ_BYTES = 1_048_576
END = b"\r\n\r\n"

Answer = Callable[[bytes], None]


class Workspace:
    """Agents, the number of voices, and the answers that are kept back."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._agents: dict[str, dict[str, Any]] = {}
        self._holds = False
        self._held: list[tuple[Answer, bytes]] = []

    def answer(self, method: str, path: str, body: bytes, send: Answer) -> None:
        """Answers one request, now or later."""
        route, _, rest = path.partition("?")[0].removeprefix("/").partition("/")
        match method, route, rest.split("/"):
            case "POST", "v1", ["voices", "add"]:
                made = _json({"voice_id": f"voice{next(self._numbers):015}", "requires_verification": False})
                if self._holds:
                    self._held.append((send, made))
                else:
                    send(made)
            case "GET", "v1", ["voices", voice_id]:
                send(_json({"voice_id": voice_id, "name": "voice", "category": "cloned"}))
            case "GET", "v2", ["voices"]:
                send(_json({"voices": [], "has_more": False, "total_count": 0, "next_page_token": None}))
            case "GET" | "PATCH", "v1", ["convai", "agents", agent_id]:
                send(self._agent(agent_id, body))
            case "POST", "hold", _:
                self._holds = True
                send(b"{}")
            case "POST", "release", _:
                self._holds = False
                held, self._held = self._held, []
                for late, made in held:
                    late(made)
                send(b"{}")
            case "GET", "held", _:
                send(_json({"held": len(self._held)}))
            case _:  # deletions, the subscription, spans
                send(b"{}")

    def _agent(self, agent_id: str, body: bytes) -> bytes:
        given = self._agents.setdefault(agent_id, {"voice_id": "21m00Tcm4TlvDq8ikWAM", "first_message": "Hi"})
        if body:
            config = json.loads(body)["conversation_config"]
            given |= config.get("tts", {}) | config.get("agent", {})
        allowed = {"agent": {"first_message": True}, "tts": {"voice_id": True}}
        return _json({
            "agent_id": agent_id,
            "name": agent_id,
            "conversation_config": {
                "agent": {"first_message": given["first_message"]}, "tts": {"voice_id": given["voice_id"]},
            },
            "platform_settings": {"overrides": {"conversation_config_override": allowed}},
        })  # fmt: skip


class Connection(asyncio.BufferedProtocol):
    """One client's connection. A large body is counted and not kept."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._piece = bytearray(READ_BYTES)
        self._head = bytearray()
        self._left = 0
        self._request: tuple[str, str] | None = None
        self._body = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]

    def get_buffer(self, _: int) -> bytearray:
        return self._piece

    def buffer_updated(self, nbytes: int) -> None:
        if self._request is not None and nbytes <= self._left and self._request[1] == "/v1/voices/add":
            self._left -= nbytes
        else:
            self._take(bytes(memoryview(self._piece)[:nbytes]))
        if self._request is not None and not self._left:
            (method, path), body = self._request, bytes(self._body)
            self._request = None
            self._body.clear()
            self._workspace.answer(method, path, body, self._send)

    def _take(self, data: bytes) -> None:
        if self._request is None:
            self._head += data
            if END not in self._head:
                return
            head, _, data = bytes(self._head).partition(END)
            self._head.clear()
            first, *lines = head.decode("latin-1").split("\r\n")
            method, path, _ = first.split(" ")
            headers = {
                name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
            }
            if "transfer-encoding" in headers:
                raise ValueError("nobody who is measured sends a body in chunks")
            self._request, self._left = (method, path), int(headers.get("content-length", "0"))
        self._left -= len(data)
        if self._request[1] != "/v1/voices/add":
            self._body += data

    def _send(self, answer: bytes) -> None:
        self._transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (len(answer), answer)
        )


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()


async def serve() -> None:
    """Serves on a free port of the loopback until SIGTERM."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    workspace = Workspace()
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    server = await loop.create_server(lambda: Connection(workspace), sock=listener)
    sys.stdout.write(f"benchmarks.provider ready on http://127.0.0.1:{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    await stopped.wait()
    server.close()


if __name__ == "__main__":
    uvloop.run(serve())
