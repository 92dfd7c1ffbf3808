"""Feedback, training and adapters over HTTP."""

from __future__ import annotations

import asyncio
from dataclasses import asdict

from sanic import Blueprint, HTTPResponse, Request
from sanic import json as json_response

from appliance.api.auth import device_of, require_owner
from appliance.api.errors import parse
from appliance.api.schemas import FeedbackBody, PinBody, PromoteBody
from appliance.api.views import adapter_for, pending_for, run_for, status_for
from appliance.errors import InvalidRequest
from appliance.learning.feedback import Feedback, give_feedback
from appliance.learning.forget import Wish
from appliance.learning.pin import load_pin

blueprint = Blueprint("learning", url_prefix="/v1")
BASE = "base"


@blueprint.post("/feedback")
async def feedback(request: Request) -> HTTPResponse:
    """Praise, correct or criticise an answer; durable on disk when this is answered."""
    body = await parse(request, FeedbackBody)
    ctx = request.app.ctx
    device = device_of(request)
    given = Feedback(
        **body.model_dump() | {"weight": body.weight or "normal"},
        device=device.id if device else None,
        teaches=device is not None and device.teach,
    )
    example = await asyncio.to_thread(
        give_feedback, ctx.store, ctx.config, given, collector=ctx.collector, events=ctx.events
    )
    return json_response(
        {
            "id": example.id,
            "object": "feedback",
            "created": int(example.created),
            "kind": example.kind,
            "state": example.state,
            "weight": example.weight,
            "pending": await asyncio.to_thread(pending_for, device, ctx.store),
        }
    )


@blueprint.get("/training/status")
async def status(request: Request) -> HTTPResponse:
    """Queue, present run, last run."""
    ctx, device = request.app.ctx, device_of(request)
    timeout = ctx.config.lora.batch_timeout_minutes * 60
    shown = await asyncio.to_thread(lambda: status_for(device, ctx.learning.status(), ctx.store, timeout))
    return json_response({"object": "training.status", **shown})


@blueprint.post("/training/run")
async def run(request: Request) -> HTTPResponse:
    """Start a run on what is pending now."""
    require_owner(request)
    started = await asyncio.to_thread(request.app.ctx.learning.request, "person")
    return json_response({"object": "training.run", **asdict(started)}, status=202)


@blueprint.post("/training/cancel")
async def cancel(request: Request) -> HTTPResponse:
    """Stop the present run; its examples stay pending."""
    require_owner(request)
    await asyncio.to_thread(request.app.ctx.learning.cancel)
    return json_response({"object": "training.cancel"}, status=202)


@blueprint.get("/training/runs/<run_id:str>")
async def get_run(request: Request, run_id: str) -> HTTPResponse:
    """One run with its report."""
    store, device = request.app.ctx.store, device_of(request)
    shown = await asyncio.to_thread(lambda: run_for(device, store.runs.get(run_id), store))
    return json_response({"object": "training.run", **shown})


@blueprint.delete("/training/examples/<example_id:str>")
async def forget_example(request: Request, example_id: str) -> HTTPResponse:
    """Forget an example and all that holds its text."""
    return await _forget(request, ids=(example_id,))


@blueprint.delete("/training/devices/<device:str>/examples")
async def forget_device(request: Request, device: str) -> HTTPResponse:
    """Forget all that a device said."""
    return await _forget(request, device=device)


async def _forget(request: Request, ids: tuple[str, ...] = (), device: str | None = None) -> HTTPResponse:
    require_owner(request)
    wish = Wish(ids, device, _retrain(request))
    ctx = request.app.ctx
    if ctx.collector.paused is None:  # what was answered a moment ago is forgotten too
        await asyncio.to_thread(ctx.collector.flush, 2.0)
    done = await ctx.learning.forget(wish, "owner")
    return json_response(
        {"object": "training.forgotten", **asdict(done), "current": request.app.ctx.engine.adapter}
    )


def _retrain(request: Request) -> bool:
    given = str(request.args.get("retrain", "false"))
    if given not in ("true", "false"):
        raise InvalidRequest('`retrain` is "true" or "false".', param="retrain")
    return given == "true"


@blueprint.get("/adapters")
async def list_adapters(request: Request) -> HTTPResponse:
    """Known adapters, newest first, and the one in service."""
    store = request.app.ctx.store
    rows = await asyncio.to_thread(store.adapters.list)
    pinned = await asyncio.to_thread(load_pin, store.settings) is not None
    serving = request.app.ctx.engine.adapter
    device = device_of(request)
    data = [{**adapter_for(device, row), "in_service": row.name == serving} for row in rows]
    return json_response({"object": "list", "current": serving, "pinned": pinned, "data": data})


@blueprint.post("/adapters/promote")
async def promote(request: Request) -> HTTPResponse:
    """Put an adapter, or `base`, in service."""
    require_owner(request)
    name = (await parse(request, PromoteBody)).name
    await request.app.ctx.switch.promote(
        None if name == BASE else name, reason="asked for through the API", actor="owner"
    )
    return json_response({"object": "adapter.switch", "current": request.app.ctx.engine.adapter})


@blueprint.post("/adapters/rollback")
async def rollback(request: Request) -> HTTPResponse:
    """Put the adapter that was in service before back."""
    require_owner(request)
    await request.app.ctx.switch.rollback("owner")
    return json_response({"object": "adapter.switch", "current": request.app.ctx.engine.adapter})


@blueprint.post("/adapters/pin")
async def pin(request: Request) -> HTTPResponse:
    """Keep what is in service there until a person switches."""
    require_owner(request)
    name = (await parse(request, PinBody)).name
    await request.app.ctx.switch.pin(None if name == BASE else name, "owner")
    return json_response({"object": "adapter.pin", "current": request.app.ctx.engine.adapter, "pinned": True})


@blueprint.post("/adapters/unpin")
async def unpin(request: Request) -> HTTPResponse:
    """Let the box switch by itself again."""
    require_owner(request)
    await request.app.ctx.switch.unpin("owner")
    return json_response(
        {"object": "adapter.pin", "current": request.app.ctx.engine.adapter, "pinned": False}
    )
