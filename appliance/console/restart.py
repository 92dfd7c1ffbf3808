"""Restarting the box from the console, and the page that waits for it to come back.

The notice that a restart is due is `parts/restart.html`; any page can show it.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from urllib.parse import urlencode

from sanic import Blueprint, HTTPResponse, Request

from appliance.console.actions import audit
from appliance.console.render import back, form_field, page
from appliance.errors import ShammahError
from appliance.served import read_served

LEAVE_SECONDS = 1.5
"""Until the box stops: the page that waits, and what belongs to it, is delivered first."""

_PATH = re.compile(r"/(?!/)[\w./?&=%~-]*", re.ASCII)


def add_routes(blueprint: Blueprint) -> None:
    """Put `/restart` on the blueprint."""
    blueprint.add_route(show, "/restart", methods=["GET"], name="restart")
    blueprint.add_route(restart, "/restart", methods=["POST"], name="restart_now")


async def restart(request: Request) -> HTTPResponse:
    """Restart, if the box would come up again."""
    ctx = request.app.ctx
    to = _local(form_field(request, "to"))
    try:
        await asyncio.to_thread(ctx.restart.check)
    except ShammahError as error:
        return back(request, error.message, "bad", to)
    keys = await asyncio.to_thread(ctx.restart.waiting)
    await audit(request, "restart", waiting=[key.name for key in keys])
    ctx.restart.begin(LEAVE_SECONDS)
    return back(request, to=f"/restart?{urlencode({'before': ctx.started_at, 'to': to})}")


async def show(request: Request) -> HTTPResponse:
    """What a restart does, or the wait for it; when the box has come back, the page where that was asked."""
    ctx = request.app.ctx
    before, to = request.args.get("before", ""), _local(request.args.get("to", "/"))
    if before and before != str(ctx.started_at):
        served = await asyncio.to_thread(read_served, ctx.home)
        if served.fallback is not None and served.fallback.at > ctx.started_at - 120:
            return back(request, "The box is back, but not with the model that was wanted.", "bad", "/models")
        return back(request, "The box has restarted.", to=to)
    if ctx.restart.wanted:
        again = f"/restart?{urlencode({'before': ctx.started_at, 'to': to})}"
        seconds = math.ceil(LEAVE_SECONDS + 2 + 1.5 * ctx.start_seconds)
        return page(request, "restarting.html", section="settings", again=again, seconds=seconds)
    keys = await asyncio.to_thread(ctx.restart.waiting)
    return page(
        request, "restart.html", section="settings", keys=keys, to=to, up=time.time() - ctx.started_at
    )


def _local(path: str) -> str:
    """A path of this box, whatever was sent: two slashes at the beginning would name another host."""
    return path if _PATH.fullmatch(path) else "/"
