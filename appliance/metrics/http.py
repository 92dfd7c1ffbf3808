"""Requests and responses, by what bounds their number: routes, codes, kinds of callers."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Http:
    """Counted as responses end."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._responses = Counter(
            "shammah_http_responses",
            "Responses that are over, by route, status and kind of caller: device, owner, keyless or nobody.",
            ["endpoint", "status", "caller"],
            registry=registry,
        )
        self._seconds = Histogram(
            "shammah_http_response_seconds",
            "Time from a request's first byte to its response's last one.",
            ["endpoint"],
            buckets=SECONDS,
            registry=registry,
        )
        self._refused = Counter(
            "shammah_http_refused",
            "Requests that were refused or failed, by the error's code (rate_limit_exceeded: by a limit).",
            ["code"],
            registry=registry,
        )
        self._logins = Counter(
            "shammah_logins",
            "Attempts to log in to the console with the password, by outcome.",
            ["outcome"],
            registry=registry,
        )
        for outcome in ("succeeded", "failed", "throttled"):
            self._logins.labels(outcome)
        for code in ("rate_limit_exceeded", "server_busy", "invalid_api_key", "unavailable", "storage_full"):
            self._refused.labels(code)

    def responded(self, endpoint: str, status: int, caller: str, seconds: float) -> None:
        """A response is over. Status 499: its client left before there was one."""
        self._responses.labels(endpoint, status, caller).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def refused(self, code: str) -> None:
        """An error was answered with, of one of our own kinds."""
        self._refused.labels(code).inc()

    def login(self, outcome: str) -> None:
        """Somebody has tried: "succeeded", "failed" or "throttled"."""
        self._logins.labels(outcome).inc()
