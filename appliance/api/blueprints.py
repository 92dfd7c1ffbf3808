"""The API's blueprints, put together, with what every request passes through."""

from __future__ import annotations

from typing import Any

from sanic import Request, Sanic

from appliance.api import completions, errors, health, learning, models, openapi, storage
from appliance.api.auth import identify, only_this_machine
from appliance.api.exchange import completed
from appliance.failpoints import failpoint
from appliance.network.plain import only_secure

_V1 = (completions.blueprint, models.blueprint, learning.blueprint, storage.blueprint)


def setup(app: Sanic[Any, Any]) -> None:
    """Register the API on the app."""
    errors.setup(app)
    for blueprint in _V1:
        blueprint.on_request(identify)
        app.blueprint(blueprint)
    app.blueprint(health.blueprint)
    app.blueprint(openapi.blueprint)
    app.register_middleware(_turn, "request", priority=20)
    app.register_middleware(only_this_machine, "request", priority=10)  # before any other reads anything
    app.register_middleware(only_secure, "request", priority=9)
    app.add_signal(completed, "http.lifecycle.response")


async def _turn(request: Request) -> None:
    failpoint("loop.turn")
