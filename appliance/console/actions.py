"""What the owner's buttons do. Each answers a form: act, then back to the page with a message."""

from __future__ import annotations

import asyncio
from typing import Any

from sanic import Blueprint, HTTPResponse, Request
from sanic.response import html

from appliance.console.render import back, form_field, render, wants_fragment
from appliance.errors import InvalidRequest, NotFound, ShammahError
from appliance.learning.feedback import Feedback, accept_review, discard_review, give_feedback
from appliance.learning.forget import Forgotten, Wish

BASE = "base"
_OWNER = "owner"


def add_routes(blueprint: Blueprint) -> None:
    """Put the actions on the blueprint."""
    for path, action in (
        ("/console/train", train),
        ("/console/cancel", cancel),
        ("/console/promote", promote),
        ("/console/rollback", roll_back),
        ("/console/feedback", feedback),
        ("/console/review", review),
    ):
        blueprint.add_route(action, path, methods=["POST"], name=path.rpartition("/")[2])


async def train(request: Request) -> HTTPResponse:
    """Start a run now."""
    try:
        run = await asyncio.to_thread(request.app.ctx.learning.request, "person")
    except ShammahError as error:
        return back(request, error.message, "bad")
    await _audit(request, "train", run=run.id)
    return back(request, f"Run {run.id} is on its way. This page follows it.")


async def cancel(request: Request) -> HTTPResponse:
    """Stop the run that is going on; its examples go back to the queue."""
    try:
        await asyncio.to_thread(request.app.ctx.learning.cancel)
    except ShammahError as error:
        return back(request, error.message, "bad")
    await _audit(request, "cancel")
    return back(request, "The run is being stopped. Its examples go back to the queue.")


async def promote(request: Request) -> HTTPResponse:
    """Put another adapter, or the base model, in service."""
    chosen = form_field(request, "name")
    name = None if chosen == BASE else chosen
    try:
        if not chosen:
            raise InvalidRequest("Name the adapter to put in service.", param="name")
        await request.app.ctx.switch.promote(name, reason="chosen in the console", actor=_OWNER)
    except ShammahError as error:
        return back(request, error.message, "bad", "/#adapters")
    return back(request, f"{name or 'The base model'} is in service.", to="/#adapters")


async def roll_back(request: Request) -> HTTPResponse:
    """Put back what was in service before."""
    try:
        name = await request.app.ctx.switch.rollback(_OWNER)
    except ShammahError as error:
        return back(request, error.message, "bad")
    return back(request, f"Rolled back: {name or 'the base model'} is in service.")


async def feedback(request: Request) -> HTTPResponse:
    """Thumbs, a correction or a note on an answer of the chat box."""
    ctx = request.app.ctx
    completion_id = form_field(request, "completion_id")
    to = f"/?chat={completion_id}#chat"
    try:
        completion = await asyncio.to_thread(ctx.store.completions.get, completion_id)
        if completion is None:
            raise NotFound("That answer is not kept any more, so it cannot be rated.")
        correction, note, rating = (form_field(request, name) for name in ("correction", "note", "rating"))
        if rating != "up" and not correction and not note:
            raise InvalidRequest("Say what the answer should have been, or what is wrong with it.")
        given = Feedback(
            query=completion.query,
            response=completion.response,
            weight="normal" if rating == "up" else "high",
            feedback=note or None,
            correction=correction or None,
            rating="up" if rating == "up" else "down",
            completion_id=completion_id,
            device=None,
            source="console",
        )
        example = await asyncio.to_thread(give_feedback, ctx.store, ctx.config, given, events=ctx.events)
    except ShammahError as error:
        if wants_fragment(request):
            return html(render("parts/rated.html", problem=error.message, kind=None))
        return back(request, error.message, "bad", to)
    if wants_fragment(request):
        return html(render("parts/rated.html", problem=None, kind=example.kind))
    return back(request, _THANKS[example.kind], to=to)


async def review(request: Request) -> HTTPResponse:
    """Decide about a drafted correction: learn it (as it is or edited), drop it, or forget its text."""
    ctx = request.app.ctx
    example_id, target = form_field(request, "id"), form_field(request, "target")
    decision = form_field(request, "decision")
    accept = decision == "accept"
    try:
        if decision == "forget":
            done = await ctx.learning.forget(Wish((example_id,)), _OWNER)
            return back(request, _forgotten(example_id, done), to="/#review")
        if accept:
            await asyncio.to_thread(accept_review, ctx.store, example_id, target)
        else:
            await asyncio.to_thread(discard_review, ctx.store, example_id)
    except ShammahError as error:
        return back(request, error.message, "bad", "/#review")
    await _audit(request, "review", example=example_id, accepted=accept)
    ctx.events.publish("example.reviewed", id=example_id, accepted=accept)
    return back(request, "It will be learnt in the next run." if accept else "Dropped.", to="/#review")


def _forgotten(example_id: str, done: Forgotten) -> str:
    if not done.adapters:
        return "Forgotten: its text is on this box no more."
    return (
        f"Forgotten, but {', '.join(done.adapters)} had learnt from it before. "
        f"`shammah queue forget {example_id} --retrain` gives that up, too."
    )


_THANKS = {
    "praise": "Noted: more like this.",
    "correction": "Noted: your answer will be learnt in the next run, with high weight.",
    "critique": "Noted: the box drafts a better answer, and asks you to look at it under Needs review.",
}


# Switches are audited where they happen, whoever asks for them.
async def _audit(request: Request, action: str, **detail: Any) -> None:
    detail["address"] = request.ip
    await asyncio.to_thread(request.app.ctx.store.audit.add, _OWNER, f"console.{action}", detail)
