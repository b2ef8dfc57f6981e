"""What the gateway measures of connections and of what it holds."""

import asyncio

import httpx
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from environment import Secret
from gateway.app import listening, serving
from gateway.settings import Settings

SECRET = "test-webhook-secret-0001"


async def test_connections(spans, eventually) -> None:
    """Connections are counted while they are open, and once more when they have to go."""
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader], shutdown_on_exit=False)

    def told(name: str, value: str | None = None) -> float | None:
        data = reader.get_metrics_data()
        points = {
            next(iter(point.attributes.values()), None): point.value
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        }
        return points.get(value)

    settings = Settings(
        elevenlabs_webhook_secret=(Secret(SECRET),),
        precall_webhook_host="127.0.0.1",
        precall_webhook_port=0,
        precall_max_connections=2,
        shutdown_grace_seconds=1,
        drain_seconds=0,
    )
    async with serving(settings, spans.provider("gateway"), listening(settings), meters=meters) as address:
        url = httpx.URL(address)
        assert 0 == told("precall.connections")
        opened = [await asyncio.open_connection(url.host, url.port) for _ in range(2)]
        await eventually(lambda: 2 == told("precall.connections"))
        opened.append(await asyncio.open_connection(url.host, url.port))
        await eventually(lambda: 1 == told("precall.connections.refused", "gave_way"))
        assert 2 == told("precall.connections")
        opened[-1][1].write(b"not HTTP\r\n\r\n")
        await opened[-1][0].read()
        await eventually(lambda: 1 == told("precall.connections.refused", "unreadable"))
        for _, writer in opened:
            writer.close()
        await eventually(lambda: 0 == told("precall.connections"))

    assert told("precall.connections.refused", "full") is None
    assert 0 == told("precall.buffer.used", "bodies")
    assert settings.max_buffered_bytes == told("precall.buffer.limit", "bodies")
