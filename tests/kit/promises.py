"""For which reasons each call of the contract may fail, and a client that holds a server to it."""

import asyncio
import re
from pathlib import Path
from typing import Any

import grpc

from tests.kit.failures import read, told

__all__ = ["CODES", "EVERY", "PROMISED", "Promises", "check"]

REASONS = Path(__file__).parents[2] / "proto" / "precall" / "v1" / "error_reason.proto"
CODES = {
    name: code for code, name in re.findall(r"gRPC (\w+)\.\n  ERROR_REASON_(\w+) =", REASONS.read_text())
}
"""The status code of each reason, by its comment in the contract."""

WAITS = {
    "RATE_LIMITED",
    "PROVIDER_BUSY",
    "PROVIDER_UNAVAILABLE",
    "REGISTRY_UNAVAILABLE",
    "CLONER_UNAVAILABLE",
    "VOICE_MONTHLY_LIMIT",
}

EVERY = frozenset(
    [
        "UNAUTHENTICATED",
        "PERMISSION_DENIED",
        "MALFORMED_BODY",
        "BODY_TOO_LARGE",
        "BODY_TIMEOUT",
        "DEADLINE_TOO_SHORT",
        "RATE_LIMITED",
        "CLONER_UNAVAILABLE",
        "INTERNAL",
    ]
)
"""Of any call."""

READING = frozenset(["FIELD_INVALID", "REGISTRY_UNAVAILABLE"])
MAKING = READING | frozenset(
    [
        "SAMPLE_TOO_LARGE",
        "SAMPLE_TOO_SHORT",
        "SAMPLE_TOO_LONG",
        "SAMPLE_SILENT",
        "SAMPLE_RATE_TOO_LOW",
        "SAMPLE_UNREADABLE",
        "SAMPLE_REJECTED",
        "VOICE_NEEDS_VERIFICATION",
        "CONSENT_MISSING",
        "PROVIDER_UNAUTHORIZED",
        "PROVIDER_PLAN_LIMIT",
        "VOICE_SLOTS_EXHAUSTED",
        "VOICE_MONTHLY_LIMIT",
        "PROVIDER_PROTOCOL",
        "PROVIDER_BUSY",
        "PROVIDER_UNAVAILABLE",
        "PROVIDER_TIMEOUT",
    ]
)
PROMISED = {
    "PrepareCall": MAKING | {"CONVERSATION_MISMATCH", "SAMPLE_REQUIRED", "AGENT_NOT_FOUND", "AGENT_REJECTED"},
    "OpenCall": READING,
    "CloneVoice": MAKING | {"NOT_FOUND"},
    "GetVoice": READING | {"NOT_FOUND"},
    "ListVoices": READING,
    "WatchVoice": READING | {"NOT_FOUND"},
    "CompleteCall": READING,
    "GetCall": READING | {"NOT_FOUND"},
    "ListCalls": READING,
    "ReplaceVoice": MAKING | {"NOT_FOUND"},
    "DeleteVoice": READING | {"NOT_FOUND"},
    "ForgetCaller": READING,
    "SetConsent": READING | {"NOT_FOUND"},
    "GetLimits": frozenset[str](),
    "GetUsage": READING - {"FIELD_INVALID"},
}


TRIES = 5


class Promises(grpc.aio.UnaryUnaryClientInterceptor):
    """Notes every failure of a call for a reason that it does not promise.

    The cloner answers a little before its time is up. On a machine that stands still for a moment then, or while the
    request is on its way, the client's own clock may be first now and then: it asks again.
    """

    def __init__(self) -> None:
        self.broken: list[tuple[str, str]] = []

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        method = client_call_details.method
        name = (method.decode() if isinstance(method, bytes) else method).rpartition("/")[2]
        for _ in range(TRIES):
            call = await continuation(client_call_details, request)
            try:
                code = await call.code()
            except asyncio.CancelledError:
                # Waiting was given up; the call itself goes on until it is told, too.
                call.cancel()
                raise
            if code is grpc.StatusCode.OK:
                break
            answered = self._look(name, code, await call.details(), await call.trailing_metadata())
            if answered or code is not grpc.StatusCode.DEADLINE_EXCEEDED:
                break
        return call

    def _look(self, name: str, code: grpc.StatusCode, message: str, trailing: Any) -> bool:
        """Whether it was the cloner that said so."""

        class Ended:
            """What the reader of statuses wants to see."""

            def code(self) -> grpc.StatusCode:
                return code

            def details(self) -> str:
                return message

            def trailing_metadata(self) -> Any:
                return tuple(trailing or ())

        found = read(Ended())
        if found is None:  # gRPC itself said so: nobody was reached, or the time was up
            return False
        if found.reason not in EVERY | PROMISED[name]:
            self.broken.append((name, found.reason))
        return True


def check(failure: grpc.aio.AioRpcError, expected: str) -> None:
    """The reason, the code that goes with it, and when to come again where that helps."""
    found = told(failure)
    assert (expected, CODES[expected]) == (found.reason, found.code.name), failure
    assert (expected in WAITS) == (found.retry is not None), failure
    if found.retry is not None:
        assert found.retry.ToMilliseconds() >= 1_000, failure
