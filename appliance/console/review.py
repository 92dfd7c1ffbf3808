"""Drafted corrections that wait for the owner: learn them (as they are or edited), or drop them.

Forgetting one is an act of the queue, with its question first.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from sanic import Blueprint, HTTPResponse, Request
from sanic.response import html

from appliance.console.actions import audit
from appliance.console.queue import device_names
from appliance.console.render import back, form_field, page, render
from appliance.errors import InvalidRequest, ShammahError
from appliance.learning.feedback import accept_review, discard_review
from appliance.store.examples import Example

SHOWN = 20


@dataclass(frozen=True)
class Review:
    """Some of the drafts that wait for the owner, newest first.

    Attributes:
        start: how many newer ones are not among them.
        total: how many there are in all.
        devices: what devices are called, by id.
    """

    waiting: tuple[Example, ...]
    start: int
    total: int
    devices: dict[str, str]

    @property
    def end(self) -> int:
        """How many there are with these and the newer ones."""
        return self.start + len(self.waiting)

    @property
    def newer(self) -> int | None:
        """Where the page before this one starts; None when this is the first."""
        return max(0, self.start - SHOWN) if self.start else None


def add_routes(blueprint: Blueprint) -> None:
    """Put `/review` on the blueprint."""
    blueprint.add_route(show, "/review", methods=["GET"], name="review")
    blueprint.add_route(part, "/review/part", methods=["GET"], name="review-part")
    blueprint.add_route(decide, "/review", methods=["POST"], name="decide")


def review(ctx: Any, start: int = 0) -> Review:
    """What the owner should look at, from the `start`th on; the last page when that is too far. Blocking."""
    examples = ctx.store.examples
    total = examples.review_count()
    start = max(0, min(start, (total - 1) // SHOWN * SHOWN))
    return Review(tuple(examples.review(SHOWN, start)), start, total, device_names(ctx))


async def show(request: Request) -> HTTPResponse:
    """The inbox."""
    found = await asyncio.to_thread(review, request.app.ctx, _start(request))
    return page(request, "review.html", section="review", review=found)


async def part(request: Request) -> HTTPResponse:
    """The drafts of a page that is open."""
    found = await asyncio.to_thread(review, request.app.ctx, _start(request))
    return html(render("parts/review.html", review=found))


async def decide(request: Request) -> HTTPResponse:
    """Decide about one draft."""
    ctx = request.app.ctx
    example_id, decision = form_field(request, "id"), form_field(request, "decision")
    accept = decision == "accept"
    try:
        if accept:
            target = form_field(request, "target").replace("\r\n", "\n")
            await asyncio.to_thread(accept_review, ctx.store, example_id, target)
        elif decision == "drop":
            await asyncio.to_thread(discard_review, ctx.store, example_id)
        else:
            raise InvalidRequest("A decision is accept or drop.", param="decision")
    except ShammahError as error:
        return back(request, error.message, "bad")
    await audit(request, "review", example=example_id, accepted=accept)
    ctx.events.publish("example.reviewed", id=example_id, accepted=accept)
    if accept:
        return back(request, "It will be learnt in the next run.")
    return back(request, "Dropped: nothing is learnt from it. The queue has it under Excluded.")


def _start(request: Request) -> int:
    try:
        return int(request.args.get("from") or 0)
    except ValueError:
        return 0
