"""Runs: what each learned from, how it went, and what the gate said."""

from __future__ import annotations

import asyncio
from typing import Any

from sanic import Blueprint, HTTPResponse, Request

from appliance.console.actions import audit
from appliance.console.render import back, page
from appliance.errors import ShammahError
from appliance.store.runs import Run

SHOWN = 8


def add_routes(blueprint: Blueprint) -> None:
    """Put `/runs` on the blueprint."""
    blueprint.add_route(show, "/runs", methods=["GET"], name="runs")
    blueprint.add_route(train, "/runs/train", methods=["POST"], name="train")
    blueprint.add_route(cancel, "/runs/cancel", methods=["POST"], name="cancel")


def runs(ctx: Any) -> list[Run]:
    """The last runs, newest first. Blocking."""
    return list(ctx.store.runs.list(limit=SHOWN))


async def show(request: Request) -> HTTPResponse:
    """The list."""
    found = await asyncio.to_thread(runs, request.app.ctx)
    return page(request, "runs.html", section="runs", runs=found)


async def train(request: Request) -> HTTPResponse:
    """Start a run now."""
    try:
        run = await asyncio.to_thread(request.app.ctx.learning.request, "person")
    except ShammahError as error:
        return back(request, error.message, "bad")
    await audit(request, "train", run=run.id)
    return back(request, f"Run {run.id} is on its way. This page follows it.")


async def cancel(request: Request) -> HTTPResponse:
    """Stop the run that is going on; its examples go back to the queue."""
    try:
        await asyncio.to_thread(request.app.ctx.learning.cancel)
    except ShammahError as error:
        return back(request, error.message, "bad")
    await audit(request, "cancel")
    return back(request, "The run is being stopped. Its examples go back to the queue.")
