"""Server-sent events that tell an open page which of its parts have changed.

The page then asks for those parts anew: what is shown is always rendered by the same templates.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

from sanic import Blueprint, Request

from appliance.console.login import still_admitted
from appliance.events import Event, EventBus

TICK_SECONDS = 5.0

_CHANGES = {
    "example": "box-queue",
    "collect": "box-queue",
    "feedback": "box-queue",
    "run": "box-runs",
    "adapter": "box-adapters",
    "model": "box-models",
    "doctor": "box-doctor",
    "settings": "box-all",
}
_LAST = "box.stopping"
"""Open connections would hold up the stop of the daemon: all of them end with this event."""


def add_routes(blueprint: Blueprint) -> None:
    """Put `/console/events` on the blueprint."""
    blueprint.add_route(events, "/console/events", methods=["GET"], name="events")


async def events(request: Request) -> None:
    """Name the changed parts, from when the page was rendered until the browser leaves or is logged out."""
    response = await request.respond(content_type="text/event-stream; charset=utf-8")
    await response.send(": connected\n\n")
    async with aclosing(changes(request.app.ctx.events, request.args.get("seen", ""))) as stream:
        number, admitted = 0, time.monotonic()
        async for name in stream:
            if time.monotonic() - admitted >= TICK_SECONDS:
                if not await still_admitted(request):
                    return
                admitted = time.monotonic()
            number += 1
            await response.send(f"event: {name}\nid: {number}\ndata: \n\n")


@contextlib.contextmanager
def told_of_stop(bus: EventBus) -> Iterator[asyncio.Event]:
    """Set as soon as the daemon stops, for a stream that waits for something else."""
    loop, stopping = asyncio.get_running_loop(), asyncio.Event()

    def hear(event: Event) -> None:
        if event.name == _LAST:
            loop.call_soon_threadsafe(stopping.set)

    remove = bus.listen(hear)
    try:
        yield stopping
    finally:
        remove()


async def changes(bus: EventBus, seen: str) -> AsyncGenerator[str, None]:
    """The names of changed parts, with a tick when nothing else happens.

    Args:
        bus: where the box tells what happens.
        seen: the bus's `count` when the page was rendered. If it is another now, the page missed
            something: it was connecting, or away for a while, or the box has been restarted.
    """
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[str] = asyncio.Queue(maxsize=100)

    def note(change: str) -> None:
        with contextlib.suppress(asyncio.QueueFull):
            arrived.put_nowait(change)

    def hear(event: Event) -> None:
        family = event.name.partition(".")[0]
        change = "box-progress" if event.name == "run.progress" else _CHANGES.get(family)
        if event.name == _LAST:
            change = _LAST
        if change is not None:
            with contextlib.suppress(RuntimeError):  # the loop has been closed
                loop.call_soon_threadsafe(note, change)

    remove = bus.listen(hear)
    try:
        if seen != str(bus.count):
            yield "box-all"  # one request a part: several at once for the same part get in each other's way
        while True:
            try:
                change = await asyncio.wait_for(arrived.get(), TICK_SECONDS)
            except TimeoutError:
                change = "box-tick"
            if change == _LAST:
                return
            yield change
    finally:
        remove()
