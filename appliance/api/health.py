"""`/health`, `/ready` and `/metrics`: for supervisors and monitoring."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from sanic import Blueprint, HTTPResponse, Request, raw
from sanic import json as json_response

from appliance import __version__
from appliance.api.auth import admit_to_figures, on_this_machine
from appliance.metrics.exposition import CONTENT_TYPE

blueprint = Blueprint("health")


@blueprint.get("/health")
async def health(request: Request) -> HTTPResponse:
    """200 while the box does its work; 503 when a restart would help."""
    ctx = request.app.ctx
    wrong = failing(ctx)
    body = {
        "status": "failing" if wrong else "ok",
        "reasons": wrong,
        "version": __version__,
        "uptime_seconds": round(time.monotonic() - ctx.started, 1),
    }
    return json_response(body, status=503 if wrong else 200)


@blueprint.get("/ready")
async def ready(request: Request) -> HTTPResponse:
    """200 when a request would be taken."""
    ctx = request.app.ctx
    wrong = unready(request.app)
    body: dict[str, Any] = {"status": "not ready" if wrong else "ready"}
    if on_this_machine(request):  # what a box has learned and when is not everybody's business
        body |= {"model": ctx.bundle.manifest.name, "adapter": ctx.engine.adapter}
    if wrong:
        body["reasons"] = wrong
    return json_response(body, status=503 if wrong else 200)


@blueprint.get("/metrics")
async def metrics(request: Request) -> HTTPResponse:
    """Prometheus exposition."""
    await admit_to_figures(request)
    text = await asyncio.to_thread(request.app.ctx.metrics.text)
    return raw(text, headers={"Content-Type": CONTENT_TYPE})


def alive(ctx: Any) -> bool:
    """Whether the box does its work: no restart would help. From any thread.

    Args:
        ctx: the app's context.
    """
    return not failing(ctx)


def failing(ctx: Any) -> list[str]:
    """What a restart would help against, for people; empty when all is well. From any thread."""
    wrong = []
    limit = ctx.config.server.stalled_seconds
    engine = ctx.engine.stats()
    if not ctx.engine.alive:
        wrong.append("The engine's thread is not running.")
    if engine.stalled_seconds >= limit:
        wrong.append(f"A step of the engine has been going on for {engine.stalled_seconds:.0f} seconds.")
    if ctx.pulse.silent_seconds >= limit:
        wrong.append(f"The event loop has stood still for {ctx.pulse.silent_seconds:.0f} seconds.")
    return wrong


def unready(app: Any) -> list[str]:
    """Why a request would not be taken; empty when it would.

    A full queue is no reason: such a request is answered, with 429 and when to come back. A supervisor
    must not take a busy box for a broken one.
    """
    if not app.state.is_running:  # a signal would be missed before, and after it nothing new is begun
        return ["The box is starting or stopping."]
    return failing(app.ctx)
