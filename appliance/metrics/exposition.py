"""The registry of one daemon, and what Prometheus is told of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, disable_created_metrics, generate_latest

from appliance.metrics.box import Box
from appliance.metrics.http import Http
from appliance.metrics.learned import Learned
from appliance.metrics.queue import Queue
from appliance.metrics.readings import Readings
from appliance.metrics.serving import Serving

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, with the time it began


class Metrics:
    """The registry of one daemon.

    Attributes:
        http: counts requests.
    """

    def __init__(self, ctx: Any) -> None:
        """Collect from the parts in the app's context."""
        self.registry = CollectorRegistry(auto_describe=False)
        self.http = Http(self.registry)
        self._readings = Readings()
        learned = Learned(self.registry, ctx.store, ctx.events)
        for collector in (*ctx.engine.timings.all(), ctx.store.database.commits, ctx.pulse.lag):
            self.registry.register(collector)
        for collector in (Serving(ctx), Queue(ctx), learned, Box(ctx), self._readings):
            self.registry.register(collector)
        ProcessCollector(registry=self.registry)

    def offer(
        self, name: str, text: str, read: Callable[[], float | Mapping[str, float] | None], label: str = ""
    ) -> None:
        """Tell a figure of another room, too.

        Args:
            name: as Prometheus has it; one that ends in `_total` only ever rises.
            text: what it is, for people.
            read: gives the value at a scrape, quickly and from a thread; by label if there is one; None
                while there is none to tell.
            label: what tells the values apart.
        """
        self._readings.offer(name, text, read, label)

    def text(self) -> bytes:
        """The exposition. Blocking: it asks the store."""
        return generate_latest(self.registry)
