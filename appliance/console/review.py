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
from appliance.console.paging import Sheet, page_number, sheet
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
        sheet: which of them.
        devices: what devices are called, by id.
    """

    waiting: tuple[Example, ...]
    sheet: Sheet
    devices: dict[str, str]


def add_routes(blueprint: Blueprint) -> None:
    """Put `/review` on the blueprint."""
    blueprint.add_route(show, "/review", methods=["GET"], name="review")
    blueprint.add_route(part, "/review/part", methods=["GET"], name="review-part")
    blueprint.add_route(decide, "/review", methods=["POST"], name="decide")


def review(ctx: Any, number: int) -> Review:
    """A page of what the owner should look at. Blocking."""
    examples = ctx.store.examples
    part = sheet(number, examples.review_count(), SHOWN)
    return Review(tuple(examples.review(SHOWN, part.start)), part, device_names(ctx))


async def show(request: Request) -> HTTPResponse:
    """The inbox."""
    found = await asyncio.to_thread(review, request.app.ctx, page_number(request))
    return page(request, "review.html", section="review", review=found)


async def part(request: Request) -> HTTPResponse:
    """The drafts of a page that is open."""
    found = await asyncio.to_thread(review, request.app.ctx, page_number(request))
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
        return back(request, "It will be learned in the next run.")
    return back(request, "Dropped: nothing is learned from it. The queue has it under Excluded.")
