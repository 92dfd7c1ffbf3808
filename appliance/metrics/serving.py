"""What the engine does and with which weights."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from typing import Any

import onnxruntime
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from appliance import __version__


class Serving(Collector):
    """Read from the engine at a scrape."""

    def __init__(self, ctx: Any) -> None:
        self._ctx = ctx

    def collect(self) -> Iterator[Metric]:
        """Its counters, its load, its weights."""
        engine = self._ctx.engine.stats()
        for name, text, total in (
            ("engine_requests", "Requests the engine accepted.", engine.requests),
            ("engine_prompt_tokens", "Prompt tokens computed.", engine.prompt_tokens),
            ("engine_cached_tokens", "Prompt tokens that were at hand from before.", engine.cached_tokens),
            ("engine_drafted_tokens", "Tokens of answers that were guessed.", engine.drafted_tokens),
            ("engine_accepted_tokens", "Guessed tokens that were right.", engine.accepted_tokens),
            ("engine_generated_tokens", "Tokens generated.", engine.generated_tokens),
            ("engine_busy_seconds", "Time the engine spent computing.", engine.busy_seconds),
            ("adapter_switches", "Adapters switched to since the start.", engine.swaps),
        ):
            yield CounterMetricFamily(f"shammah_{name}", text, value=total)
        for name, text, value in (
            ("engine_slots", "Requests that can be answered at once.", engine.slots),
            ("active_requests", "Requests being answered.", engine.active),
            ("waiting_requests", "Requests waiting for a slot.", engine.waiting),
            ("engine_step_seconds", "How long the present step has been going on.", engine.stalled_seconds),
        ):
            yield GaugeMetricFamily(f"shammah_{name}", text, value=value)
        model, adapter = self._ctx.bundle.manifest.name, self._ctx.engine.adapter or "base"
        yield _info("model", "What answers now.", {"model": model, "adapter": adapter})
        versions = {
            "version": __version__,
            "python": platform.python_version(),
            "onnxruntime": onnxruntime.__version__,
        }
        yield _info("build", "Which program this is.", versions)


def _info(name: str, text: str, labels: dict[str, str]) -> Metric:
    return InfoMetricFamily(f"shammah_{name}", text, value=labels)
