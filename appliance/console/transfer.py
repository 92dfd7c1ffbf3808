"""Examples out of the box and into it, as JSON lines: the export of a list, and the import of a file."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from sanic import Blueprint, HTTPResponse, Request

from appliance.console.actions import audit
from appliance.console.chosen import plural
from appliance.console.listing import given_in, read_listing
from appliance.console.render import back, page
from appliance.console.upload import received_file
from appliance.errors import ShammahError
from appliance.reading import MAX_JSON
from appliance.store.transfer import FIELDS, Transfer

AT_ONCE = 200
"""Lines read and sent together."""
_BOM = b"\xef\xbb\xbf"


def add_routes(blueprint: Blueprint) -> None:
    """Put `/queue/export` and `/queue/import` on the blueprint."""
    blueprint.add_route(export, "/queue/export", methods=["GET"], name="queue-export")
    blueprint.add_route(show, "/queue/import", methods=["GET"], name="queue-import")
    blueprint.add_route(bring_in, "/queue/import", methods=["POST"], name="queue-bring-in", stream=True)


async def export(request: Request) -> None:
    """All that a list has, a line each, oldest first. Nothing is gathered in memory."""
    listing = read_listing(given_in(request.args))
    lines = request.app.ctx.store.transfer.export(listing.filter)
    await audit(request, "examples.export", filter=dict(listing.given))
    name = f"examples-{datetime.fromtimestamp(time.time(), UTC):%Y%m%dT%H%M%SZ}.jsonl"
    response = await request.respond(
        content_type="application/x-ndjson; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )
    while text := await asyncio.to_thread(lambda: "".join(islice(lines, AT_ONCE))):
        await response.send(text)
    await response.eof()


async def show(request: Request) -> HTTPResponse:
    """The form."""
    limit = request.app.ctx.config.server.max_body_mb
    return page(request, "queue_import.html", section="queue", limit=limit, fields=FIELDS)


async def bring_in(request: Request) -> HTTPResponse:
    """Import a file: all of its lines, or none."""
    ctx = request.app.ctx
    limit = ctx.config.server.max_body_mb * 1_000_000
    try:
        async with received_file(request, ctx.home.runs, limit, lambda given: "examples.jsonl") as file:
            count = await asyncio.to_thread(_add, ctx.store.transfer, file)
    except ShammahError as error:
        return back(request, error.message, "bad", "/queue/import")
    if not count:
        return back(request, "Choose a file with a line for each example.", "bad", "/queue/import")
    await audit(request, "examples.import", count=count)
    ctx.events.publish("example.changed", count=count)
    return back(request, f"{plural(count)} imported.", to="/queue?state=all")


def _add(transfer: Transfer, file: Path) -> int:
    with file.open("rb") as lines:
        if lines.read(len(_BOM)) != _BOM:
            lines.seek(0)
        return transfer.add(iter(lambda: lines.readline(MAX_JSON + 1), b""))
