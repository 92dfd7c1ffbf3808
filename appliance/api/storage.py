"""What the home takes of the disk, and tidying it, over HTTP: for the command beside the daemon."""

from __future__ import annotations

import asyncio
from dataclasses import asdict

from sanic import Blueprint, HTTPResponse, Request
from sanic import json as json_response

from appliance.api.auth import require_owner
from appliance.storage.tidy import as_json
from appliance.storage.usage import measure

blueprint = Blueprint("storage", url_prefix="/v1/storage")


@blueprint.get("")
async def show(request: Request) -> HTTPResponse:
    """What takes how much, and what a tidying would remove now."""
    require_owner(request)
    ctx = request.app.ctx
    used = await asyncio.to_thread(measure, ctx.home)
    would = await asyncio.to_thread(ctx.upkeep.plan)
    return json_response({"object": "storage", **asdict(used), "removable": as_json(would)})


@blueprint.post("/tidy")
async def tidy(request: Request) -> HTTPResponse:
    """Remove what may go."""
    require_owner(request)
    # Begun is finished, even if the client leaves.
    done = await asyncio.shield(asyncio.to_thread(request.app.ctx.upkeep.tidy, "owner"))
    return json_response({"object": "storage.tidied", **as_json(done)})
