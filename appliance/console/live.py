"""Server-sent events that tell an open page which of its parts have changed.

The page then asks for those parts anew: what is shown is always rendered by the same templates.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import aclosing

from sanic import Blueprint, Request

from appliance.events import EventBus

TICK_SECONDS = 5.0

_CHANGES = {
    "example": "box-queue",
    "collect": "box-queue",
    "feedback": "box-queue",
    "run": "box-runs",
    "adapter": "box-adapters",
}


def add_routes(blueprint: Blueprint) -> None:
    """Put `/console/events` on the blueprint."""
    blueprint.add_route(events, "/console/events", methods=["GET"], name="events")


async def events(request: Request) -> None:
    """Name the changed parts, from now until the browser leaves."""
    response = await request.respond(content_type="text/event-stream; charset=utf-8")
    await response.send(": connected\n\n")
    number = 0
    async with aclosing(changes(request.app.ctx.events, "last-event-id" in request.headers)) as stream:
        async for name in stream:
            number += 1
            await response.send(f"event: {name}\nid: {number}\ndata: \n\n")


async def changes(bus: EventBus, resumed: bool) -> AsyncGenerator[str, None]:
    """The names of changed parts, with a tick when nothing else happens.

    Args:
        bus: where the box tells what happens.
        resumed: the page was away for a while, and anything may have changed.
    """
    if resumed:
        for name in ("box-queue", "box-runs", "box-adapters"):
            yield name
    arrived: asyncio.Queue[str] = asyncio.Queue(maxsize=100)

    async def follow() -> None:
        async for event in bus.stream():
            family = event.name.partition(".")[0]
            change = "box-progress" if event.name == "run.progress" else _CHANGES.get(family)
            if change is not None:
                with contextlib.suppress(asyncio.QueueFull):
                    arrived.put_nowait(change)

    follower = asyncio.create_task(follow())
    try:
        while True:
            try:
                yield await asyncio.wait_for(arrived.get(), TICK_SECONDS)
            except TimeoutError:
                yield "box-tick"
    finally:
        follower.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await follower
