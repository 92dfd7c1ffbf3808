"""How long requests wait, for what, and in whose company: histograms that the engine's thread fills.

They belong to the engine and not to a registry of their library, which tells them at `/metrics` when asked.
"""

from __future__ import annotations

from prometheus_client import Histogram
from prometheus_client.registry import Collector

_WAITS = (0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOKENS = (0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.2, 0.4, 0.8, 2, 5)


def _histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
    return Histogram(f"shammah_{name}", text, buckets=buckets, registry=None)


class Timings:
    """The histograms; each observation takes a microsecond or two."""

    def __init__(self) -> None:
        self.queue = _histogram(
            "engine_queue_wait_seconds", "Time from a request's arrival at the engine to its slot.", _WAITS
        )
        self.first_token = _histogram(
            "engine_first_token_seconds",
            "Time from a request's arrival at the engine to its first token.",
            _WAITS,
        )
        self.next_token = _histogram(
            "engine_next_token_seconds", "Time from one token of an answer to its next.", _TOKENS
        )
        self.batch = _histogram(
            "engine_batch_requests",
            "Requests that a step advances.",
            (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64),
        )
        self.switch = _histogram(
            "adapter_switch_seconds",
            "Time that a switch of adapters takes; requests are answered meanwhile.",
            (0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300),
        )

    def all(self) -> tuple[Collector, ...]:
        """Each of them."""
        return (self.queue, self.first_token, self.next_token, self.batch, self.switch)
