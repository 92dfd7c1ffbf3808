"""The API's blueprints, put together, with what every request passes through."""

from __future__ import annotations

import time
from typing import Any

from sanic import Request, Sanic
from sanic.response import BaseHTTPResponse

from appliance.api import completions, errors, health, learning, models, openapi
from appliance.api.auth import identify, only_this_machine
from appliance.network.plain import only_secure

_V1 = (completions.blueprint, models.blueprint, learning.blueprint)


def setup(app: Sanic[Any, Any]) -> None:
    """Register the API on the app."""
    errors.setup(app)
    for blueprint in _V1:
        blueprint.on_request(identify)
        app.blueprint(blueprint)
    app.blueprint(health.blueprint)
    app.blueprint(openapi.blueprint)
    app.register_middleware(_start_clock, "request", priority=20)
    app.register_middleware(only_this_machine, "request", priority=10)  # before any other reads anything
    app.register_middleware(only_secure, "request", priority=9)
    app.register_middleware(_count, "response")


async def _start_clock(request: Request) -> None:
    request.ctx.began = time.monotonic()


async def _count(request: Request, response: BaseHTTPResponse) -> None:
    metrics = request.app.ctx.metrics
    endpoint = request.route.path if request.route else "none"
    metrics.responses.labels(endpoint, response.status).inc()
    metrics.latency.labels(endpoint).observe(
        time.monotonic() - getattr(request.ctx, "began", time.monotonic())
    )
