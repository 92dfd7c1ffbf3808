"""Prometheus metrics, read from the live parts when they are scraped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psutil
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The registry of one daemon."""

    def __init__(self, ctx: Any) -> None:
        self.registry = CollectorRegistry()
        self.responses = Counter(
            "shammah_http_responses",
            "API responses by endpoint and status.",
            ["endpoint", "status"],
            registry=self.registry,
        )
        self.latency = Histogram(
            "shammah_http_seconds",
            "Time to the response's end; for streams, to its last byte.",
            ["endpoint"],
            buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
            registry=self.registry,
        )
        self.registry.register(_Live(ctx))

    def text(self) -> bytes:
        """The exposition."""
        return generate_latest(self.registry)


class _Live(Collector):
    def __init__(self, ctx: Any) -> None:
        self._ctx = ctx

    def collect(self) -> Iterator[Metric]:
        engine = self._ctx.engine.stats()
        for name, text, total in (
            ("shammah_requests", "Requests the engine accepted.", engine.requests),
            ("shammah_prompt_tokens", "Prompt tokens computed.", engine.prompt_tokens),
            ("shammah_cached_tokens", "Prompt tokens taken from the prefix cache.", engine.cached_tokens),
            ("shammah_drafted_tokens", "Tokens of answers that were guessed.", engine.drafted_tokens),
            ("shammah_accepted_tokens", "Guessed tokens that were right.", engine.accepted_tokens),
            ("shammah_generated_tokens", "Tokens generated.", engine.generated_tokens),
            ("shammah_engine_busy_seconds", "Time the engine spent computing.", engine.busy_seconds),
            ("shammah_adapter_swaps", "Adapters switched to.", engine.swaps),
        ):
            yield CounterMetricFamily(name, text, value=total)
        memory = psutil.Process().memory_info().rss
        for name, text, value in (
            ("shammah_slots", "Requests that can generate at once.", engine.slots),
            ("shammah_active_requests", "Requests generating now.", engine.active),
            ("shammah_waiting_requests", "Requests waiting for a slot.", engine.waiting),
            ("shammah_resident_memory_bytes", "Memory of the serving process.", memory),
            ("shammah_start_time_seconds", "Unix time the daemon started.", self._ctx.started_at),
        ):
            yield GaugeMetricFamily(name, text, value=value)
        backups, upkeep = self._ctx.upkeep.backups.state, self._ctx.upkeep.state
        for name, text, value in (
            (
                "shammah_collection_paused",
                "1 while nothing can be stored.",
                self._ctx.collector.paused is not None,
            ),
            ("shammah_store_damaged", "1 when the database was found damaged.", upkeep.damaged is not None),
            ("shammah_disk_low", "1 while less disk is free than the settings want.", upkeep.low),
            ("shammah_backup_failed", "1 when the last automatic backup failed.", backups.failed is not None),
            ("shammah_backup_time_seconds", "Unix time of the newest automatic backup.", backups.last or 0),
        ):
            yield GaugeMetricFamily(name, text, value=float(value))
        examples = GaugeMetricFamily("shammah_examples", "Stored examples by state.", labels=["state"])
        for state, count in self._ctx.store.examples.counts().items():
            examples.add_metric([state], count)
        yield examples
        serving = GaugeMetricFamily(
            "shammah_adapter_in_service", "1 for the adapter in service.", labels=["adapter"]
        )
        serving.add_metric([self._ctx.engine.adapter or "base"], 1)
        yield serving
