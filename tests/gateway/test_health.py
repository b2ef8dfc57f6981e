import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
HEALTHY = {"status": "healthy", "service": "elevenlabs-precall-webhook"}


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Answers as `status` says, once `open` is set."""

    def __init__(self) -> None:
        self.status = SERVING
        self.asked: list[str] = []
        self.open = asyncio.Event()
        self.open.set()

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802, ARG002
        self.asked.append(request.service)
        await self.open.wait()
        return health_pb2.HealthCheckResponse(status=self.status)


@pytest.fixture
async def health() -> Health:
    """The cloner's health check."""
    return Health()


@pytest.fixture
async def url(health: Health, gateway: Callable[..., Awaitable[str]]) -> AsyncIterator[str]:
    """A gateway before a cloner that has nothing but a health check."""
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield await gateway(cloner_target=f"127.0.0.1:{port}")
    await server.stop(0)


async def test_healthy(url: str, client: httpx.AsyncClient) -> None:
    """Says that all is well."""
    for path in ("/health", "/health/live", "/health/ready"):
        answer = await client.get(url + path)

        assert (200, HEALTHY) == (answer.status_code, answer.json())


async def test_alive_without_cloner(
    gateway: Callable[..., Awaitable[str]], client: httpx.AsyncClient
) -> None:
    """The process lives whether or not there is a cloner."""
    url = await gateway(cloner_target="127.0.0.1:1")
    for path in ("/health", "/health/live"):
        answer = await client.get(url + path)

        assert (200, HEALTHY) == (answer.status_code, answer.json())


UNREADY = {
    "status": "error",
    "error_code": "PROVIDER_ERROR",
    "reason": "CLONER_UNAVAILABLE",
    "error_message": "The cloner cannot be reached. Try again later.",
    "conversation_id": None,
}


def without_trace(answer: httpx.Response) -> dict[str, Any]:
    """The JSON of an answer without its trace, which the header names as well."""
    body: dict[str, Any] = answer.json()
    assert answer.headers["traceresponse"].split("-")[1] == body.pop("trace_id")
    return body


async def test_not_serving(url: str, health: Health, client: httpx.AsyncClient) -> None:
    """Is not ready while the cloner says that it is not."""
    health.status = NOT_SERVING

    answer = await client.get(f"{url}/health/ready")

    assert (503, UNREADY) == (answer.status_code, without_trace(answer))


async def test_no_cloner(gateway: Callable[..., Awaitable[str]], client: httpx.AsyncClient) -> None:
    """Is not ready without a cloner."""
    answer = await client.get(await gateway(cloner_target="127.0.0.1:1") + "/health/ready")

    assert (503, UNREADY) == (answer.status_code, without_trace(answer))


async def test_silent_cloner(url: str, health: Health, client: httpx.AsyncClient) -> None:
    """Does not wait longer than about a second for a cloner that says nothing."""
    health.open.clear()

    async with asyncio.timeout(20):
        answer = await client.get(f"{url}/health/ready")

    assert 503 == answer.status_code


async def test_asked_once(url: str, health: Health, client: httpx.AsyncClient) -> None:
    """However many want to know, the cloner is asked once, by the name of its service."""
    health.open.clear()
    asking = [asyncio.create_task(client.get(f"{url}/health/ready")) for _ in range(20)]
    while not health.asked:
        await asyncio.sleep(0)
    health.open.set()
    answers = await asyncio.gather(*asking)
    answers.append(await client.get(f"{url}/health/ready"))

    assert {200} == {answer.status_code for answer in answers}
    assert ["precall.v1.CloningService"] == health.asked


async def test_untraced(url: str, client: httpx.AsyncClient, spans: Any) -> None:
    """Nothing about health is traced while all is well, on either side of the gateway."""
    for path in ("/health", "/health/live", "/health/ready"):
        assert "traceresponse" not in (await client.get(url + path)).headers

    assert [] == spans.finished()


async def test_failure_is_traced(url: str, health: Health, client: httpx.AsyncClient, spans: Any) -> None:
    """An answer that names its trace has one."""
    health.status = NOT_SERVING
    answers = [await client.get(f"{url}/health/ready"), await client.post(f"{url}/health")]

    told = [f"{span.context.trace_id:032x}" for span in spans.finished()]
    assert ([503, 405], told) == (
        [answer.status_code for answer in answers], [answer.json()["trace_id"] for answer in answers],
    )  # fmt: skip
