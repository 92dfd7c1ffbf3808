"""`/health`, `/ready` and `/metrics`: for supervisors and monitoring, without a key."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from sanic import Blueprint, HTTPResponse, Request, raw
from sanic import json as json_response

from appliance import __version__
from appliance.api.metrics import CONTENT_TYPE

blueprint = Blueprint("health")


@blueprint.get("/health")
async def health(request: Request) -> HTTPResponse:
    """200 while the serving loop turns; 503 when a restart would help."""
    ctx = request.app.ctx
    wrong = failing(ctx)
    body = {
        "status": "failing" if wrong else "ok",
        "reasons": wrong,
        "version": __version__,
        "uptime_seconds": round(time.time() - ctx.started_at, 1),
    }
    return json_response(body, status=503 if wrong else 200)


def alive(ctx: Any) -> bool:
    """Whether the box does its work: no restart would help. From any thread.

    Args:
        ctx: the app's context.
    """
    return not failing(ctx)


def failing(ctx: Any) -> list[str]:
    """What a restart would help against, for people; empty when all is well. From any thread."""
    wrong = []
    if not ctx.engine.alive:
        wrong.append("The engine's thread is not running.")
    stalled = ctx.engine.stats().stalled_seconds
    if stalled >= ctx.config.server.stalled_seconds:
        wrong.append(f"A step of the engine has been going on for {stalled:.0f} seconds.")
    return wrong


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
