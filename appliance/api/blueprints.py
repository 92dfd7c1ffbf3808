"""The API's blueprints, put together, with what every request passes through."""

from __future__ import annotations

from typing import Any

from sanic import Request, Sanic

from appliance.api import base_url, completions, errors, health, learning, models, openapi, storage
from appliance.api.auth import identify, only_this_machine
from appliance.api.exchange import completed
from appliance.failpoints import failpoint
from appliance.network import routes
from appliance.network.head import screen
from appliance.network.plain import only_secure

STRANGERS_BYTES = 64_000
"""More than this is not read from anybody before it is known who that is."""
_V1 = (completions.blueprint, models.blueprint, learning.blueprint, storage.blueprint)


def setup(app: Sanic[Any, Any]) -> None:
    """Register the API on the app."""
    errors.setup(app)
    routes.setup(app)
    for blueprint in _V1:
        blueprint.on_request(identify)
        app.blueprint(blueprint)
    app.blueprint(health.blueprint)
    app.blueprint(openapi.blueprint)
    app.register_middleware(_turn, "request", priority=20)
    app.register_middleware(only_this_machine, "request", priority=10)  # before any other reads anything
    app.register_middleware(only_secure, "request", priority=9)
    app.add_signal(screen, "http.lifecycle.request")
    app.add_signal(completed, "http.lifecycle.response")
    app.add_signal(base_url.look, "http.routing.after")
    app.add_signal(_identify_first, "http.routing.after")


def is_large(request: Request) -> bool:
    """Whether more of it is to come than what is read from anybody. A body in chunks may be of any size."""
    length = request.headers.get("content-length", "0")
    digits = length.isascii() and length.isdigit() and len(length) < 20
    return "transfer-encoding" in request.headers or not digits or int(length) > STRANGERS_BYTES


async def _identify_first(request: Request, handler: Any, **_: Any) -> None:
    """Before a large body is read, and not only before it is looked at."""
    if request.path.startswith("/v1/") and is_large(request):
        await only_this_machine(request)
        await identify(request)


async def _turn(request: Request) -> None:
    failpoint("loop.turn")
