"""The API's blueprints, put together, with what every request passes through."""

from __future__ import annotations

import time
from typing import Any

from sanic import Request, Sanic
from sanic.response import BaseHTTPResponse

from appliance.api import completions, errors, health, learning, models, openapi
from appliance.api.auth import identify, only_this_machine

STRANGERS_BYTES = 64_000
"""More than this is not read from anybody before it is known who that is."""
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
    app.register_middleware(_count, "response")
    app.add_signal(_identify_first, "http.routing.after")


def is_large(request: Request) -> bool:
    """Whether more of it is to come than what is read from anybody. A body in chunks may be of any size."""
    length = request.headers.get("content-length", "0")
    return "transfer-encoding" in request.headers or not length.isdigit() or int(length) > STRANGERS_BYTES


async def _identify_first(request: Request, handler: Any, **_: Any) -> None:
    """Before a large body is read, and not only before it is looked at."""
    if request.path.startswith("/v1/") and is_large(request):
        await only_this_machine(request)
        await identify(request)


async def _start_clock(request: Request) -> None:
    request.ctx.began = time.monotonic()


async def _count(request: Request, response: BaseHTTPResponse) -> None:
    metrics = request.app.ctx.metrics
    endpoint = request.route.path if request.route else "none"
    metrics.responses.labels(endpoint, response.status).inc()
    metrics.latency.labels(endpoint).observe(
        time.monotonic() - getattr(request.ctx, "began", time.monotonic())
    )
