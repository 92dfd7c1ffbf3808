"""The box itself: disk, store, programs, log, and how the event loop turns."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from appliance import logs
from appliance.hardware import read_hardware
from appliance.learning import child

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


class Box(Collector):
    """Read from the machine at a scrape; nothing is walked or weighed for it."""

    def __init__(self, ctx: Any) -> None:
        self._ctx = ctx

    def collect(self) -> Iterator[Metric]:
        """What there is of everything."""
        home = self._ctx.home
        gauges: list[tuple[str, str, float]] = [
            ("start_timestamp_seconds", "When the daemon started.", self._ctx.started_at),
            ("start_seconds", "How long the daemon took to start.", self._ctx.start_seconds),
            ("store_bytes", "Size of the store with its journal.", _size(home.store)),
            ("memory_available_bytes", "Memory the box could take.", read_hardware().available),
        ]
        with suppress(OSError):
            disk = psutil.disk_usage(os.fspath(home.root))
            gauges += [
                ("disk_free_bytes", "Free on the home's file system.", disk.free),
                ("disk_bytes", "Size of the home's file system.", disk.total),
            ]
        for name, text, value in gauges:
            yield GaugeMetricFamily(f"shammah_{name}", text, value=value)
        children = GaugeMetricFamily(
            "shammah_child_memory_bytes",
            "Memory of the trainer, the gate and other programs while they run.",
            labels=["program"],
        )
        for program, used in dict(child.memory).items():
            children.add_metric([program], used)
        yield children
        yield CounterMetricFamily(
            "shammah_event_loop_beats", "Turns of the event loop's own clock.", value=self._ctx.pulse.beats
        )
        records = CounterMetricFamily("shammah_log_records", "Log records by level.", labels=["level"])
        for level in _LEVELS:
            records.add_metric([level], logs.counts[level])
        yield records


def _size(store: Path) -> float:
    total = 0
    for suffix in ("", "-wal"):
        with suppress(OSError):
            total += store.with_name(store.name + suffix).stat().st_size
    return total
