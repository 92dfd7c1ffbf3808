"""The parts of pages that are refreshed while open: each rendered by the same template as in its page."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from sanic import Blueprint, HTTPResponse, Request
from sanic.exceptions import NotFound
from sanic.response import html

from appliance.console.devices import devices
from appliance.console.home import happened, home
from appliance.console.models import models
from appliance.console.render import render
from appliance.console.runs import going_on
from appliance.console.usage import usage

PARTS: dict[str, Callable[[Any], Any]] = {
    "home": home,
    "usage": usage,
    "happened": happened,
    "review_count": lambda ctx: ctx.store.examples.review_count(),
    "going_on": going_on,
    "devices": devices,
    "models": models,
}
"""Name of a part, of its template and of what the template shows, to the function that gathers that.

A part that depends on more than the box (a run, a page of a list) has a route in its page's module.
"""


def add_routes(blueprint: Blueprint) -> None:
    """Put `/console/part` on the blueprint."""
    blueprint.add_route(part, "/console/part/<name:str>", methods=["GET"], name="part")


async def part(request: Request, name: str) -> HTTPResponse:
    """One part of a page that is open."""
    read = PARTS.get(name)
    if read is None:
        raise NotFound("There is no such part.")
    found = await asyncio.to_thread(read, request.app.ctx)
    place = "menu" if request.args.get("place") == "menu" else "side"  # the badge stands in two places
    return html(render(f"parts/{name}.html", place=place, **{name: found}))
