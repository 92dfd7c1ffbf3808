"""The pages, and the parts of them that are refreshed while open."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from sanic import Blueprint, HTTPResponse, Request
from sanic.exceptions import NotFound
from sanic.response import html

from appliance.console import status
from appliance.console.render import page, render

PARTS: dict[str, Callable[[Any], Any]] = {
    "overview": status.overview,
    "review": status.review,
    "runs": status.runs,
    "adapters": status.adapters,
}
"""Name of a part, of its template and of what the template shows, to the function that gathers that."""


def add_routes(blueprint: Blueprint) -> None:
    """Put the pages on the blueprint."""
    blueprint.add_route(home, "/", methods=["GET"], name="home")
    blueprint.add_route(part, "/console/part/<name:str>", methods=["GET"], name="part")
    blueprint.add_route(exchange, "/console/exchange/<completion_id:str>", methods=["GET"], name="exchange")


async def home(request: Request) -> HTTPResponse:
    """The status page."""
    ctx = request.app.ctx
    completion_id = request.args.get("chat")

    def gather() -> dict[str, Any]:
        found = {name: read(ctx) for name, read in PARTS.items()}
        found["exchange"] = status.exchange(ctx, completion_id) if completion_id else None
        return found

    seen = ctx.events.count  # before anything is read: what changes from here on is told to the page
    return page(request, "status.html", seen=seen, **await asyncio.to_thread(gather))


async def part(request: Request, name: str) -> HTTPResponse:
    """One part of the status page, for a page that is open."""
    read = PARTS.get(name)
    if read is None:
        raise NotFound("There is no such part.")
    found = await asyncio.to_thread(read, request.app.ctx)
    return html(render(f"parts/{name}.html", **{name: found}))


async def exchange(request: Request, completion_id: str) -> HTTPResponse:
    """One question and answer of the chat box, with its thumbs."""
    found = await asyncio.to_thread(status.exchange, request.app.ctx, completion_id)
    if found is None:
        raise NotFound("That answer is not kept any more.")
    return html(render("parts/exchange.html", exchange=found))
