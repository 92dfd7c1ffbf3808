"""Drafted corrections that wait for the owner: learn them (as they are or edited), drop or forget them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from sanic import Blueprint, HTTPResponse, Request

from appliance.console.actions import OWNER, audit
from appliance.console.render import back, form_field, page
from appliance.errors import ShammahError
from appliance.learning.feedback import accept_review, discard_review
from appliance.learning.forget import Forgotten, Wish
from appliance.store.examples import Example

SHOWN = 20


@dataclass(frozen=True)
class Review:
    """The newest drafts that wait for the owner, and how many there are in all."""

    waiting: tuple[Example, ...]
    total: int


def add_routes(blueprint: Blueprint) -> None:
    """Put `/review` on the blueprint."""
    blueprint.add_route(show, "/review", methods=["GET"], name="review")
    blueprint.add_route(decide, "/review", methods=["POST"], name="decide")


def review(ctx: Any) -> Review:
    """What the owner should look at. Blocking."""
    examples = ctx.store.examples
    return Review(tuple(examples.review(SHOWN)), examples.review_count())


async def show(request: Request) -> HTTPResponse:
    """The inbox."""
    found = await asyncio.to_thread(review, request.app.ctx)
    return page(request, "review.html", section="review", review=found)


async def decide(request: Request) -> HTTPResponse:
    """Decide about one draft."""
    ctx = request.app.ctx
    example_id, target = form_field(request, "id"), form_field(request, "target")
    decision = form_field(request, "decision")
    accept = decision == "accept"
    try:
        if decision == "forget":
            done = await ctx.learning.forget(Wish((example_id,)), OWNER)
            return back(request, _forgotten(example_id, done))
        if accept:
            await asyncio.to_thread(accept_review, ctx.store, example_id, target)
        else:
            await asyncio.to_thread(discard_review, ctx.store, example_id)
    except ShammahError as error:
        return back(request, error.message, "bad")
    await audit(request, "review", example=example_id, accepted=accept)
    ctx.events.publish("example.reviewed", id=example_id, accepted=accept)
    return back(request, "It will be learnt in the next run." if accept else "Dropped.")


def _forgotten(example_id: str, done: Forgotten) -> str:
    if not done.adapters:
        return "Forgotten: its text is on this box no more."
    return (
        f"Forgotten, but {', '.join(done.adapters)} had learnt from it before. "
        f"`shammah queue forget {example_id} --retrain` gives that up, too."
    )
