"""What is collected, what waits to be learned, and since when."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

SHARE = 0.002
"""Counting goes through an index of all examples: 30 ms for 100,000. A count is kept so long that it takes no
larger share of the time than this, which is 15 seconds there."""


class Queue(Collector):
    """Read from collector and store at a scrape."""

    def __init__(self, ctx: Any) -> None:
        self._ctx = ctx
        self._counts: Mapping[str, int] = {}
        self._oldest: float | None = None
        self._version: int | None = None
        self._good_until = 0.0

    def collect(self) -> Iterator[Metric]:
        """Outcomes of collecting, examples by state, the age of the queue."""
        collector = self._ctx.collector
        exchanges = CounterMetricFamily(
            "shammah_exchanges", "Answers that were looked at for learning, by what became of them.",
            labels=["outcome"],
        )  # fmt: skip
        for outcome, count in dict(collector.outcomes).items():
            exchanges.add_metric([outcome], count)
        yield exchanges
        yield GaugeMetricFamily(
            "shammah_collection_paused", "1 while nothing can be stored.", value=collector.paused is not None
        )
        self._look()
        examples = GaugeMetricFamily("shammah_examples", "Stored examples by state.", labels=["state"])
        for state, count in self._counts.items():
            examples.add_metric([state], count)
        yield examples
        age = 0.0 if self._oldest is None else max(time.time() - self._oldest, 0.0)
        yield GaugeMetricFamily(
            "shammah_queue_oldest_seconds",
            "How long the first of the pending examples has waited.",
            value=age,
        )

    def _look(self) -> None:
        now = time.monotonic()
        version = self._ctx.store.database.data_version()
        if version == self._version or now < self._good_until:
            return
        self._counts = self._ctx.store.examples.counts()
        self._oldest = self._ctx.store.examples.oldest_pending()
        self._version, done = version, time.monotonic()
        self._good_until = done + (done - now) / SHARE
