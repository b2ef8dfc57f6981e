"""The metrics of a cloner, as a collector would have them."""

import asyncio
from collections.abc import Callable

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

__all__ = ["Figures"]


class Figures:
    """What `meters` are told."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self.meters = MeterProvider([self._reader], shutdown_on_exit=False)

    def told(self, name: str, **attributes: str) -> float | None:
        """What a gauge says now, or how often a histogram was told, for these values of its attributes.

        None where it says nothing.
        """
        data = self._reader.get_metrics_data()
        points = [
            point
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
            if set(attributes.values()) <= set(point.attributes.values())
        ]
        if not points:
            return None
        return points[0].value if hasattr(points[0], "value") else points[0].count

    async def until(self, name: str, holds: Callable[[float | None], bool], **attributes: str) -> None:
        """Waits until that holds of what a gauge says."""
        async with asyncio.timeout(60):
            while not holds(self.told(name, **attributes)):
                await asyncio.sleep(0.02)
