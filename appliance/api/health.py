"""`/health`, `/ready` and `/metrics`: for supervisors and monitoring, without a key."""

from __future__ import annotations

import asyncio
import time

from sanic import Blueprint, HTTPResponse, Request, raw
from sanic import json as json_response

from appliance import __version__
from appliance.api.metrics import CONTENT_TYPE

blueprint = Blueprint("health")
STALLED_SECONDS = 60.0
"""A step takes well under a second; one this long means that the engine hangs."""


@blueprint.get("/health")
async def health(request: Request) -> HTTPResponse:
    """200 while the serving loop turns; 503 when a restart would help."""
    ctx = request.app.ctx
    alive = ctx.engine.alive and ctx.engine.stats().stalled_seconds < STALLED_SECONDS
    body = {
        "status": "ok" if alive else "failing",
        "version": __version__,
        "uptime_seconds": round(time.monotonic() - ctx.started, 1),
    }
    return json_response(body, status=200 if alive else 503)


@blueprint.get("/ready")
async def ready(request: Request) -> HTTPResponse:
    """200 when a request would be answered."""
    ctx = request.app.ctx
    # Not before the server has started whole (it would miss a signal), and not while it stops.
    up = bool(ctx.engine.alive and request.app.state.is_running)
    body = {
        "status": "ready" if up else "not ready",
        "model": ctx.bundle.manifest.name,
        "adapter": ctx.engine.adapter,
    }
    return json_response(body, status=200 if up else 503)


@blueprint.get("/metrics")
async def metrics(request: Request) -> HTTPResponse:
    """Prometheus exposition."""
    text = await asyncio.to_thread(request.app.ctx.metrics.text)
    return raw(text, headers={"Content-Type": CONTENT_TYPE})
