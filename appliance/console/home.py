"""The first page: what the box does, and what needs the owner."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from sanic import Blueprint, HTTPResponse, Request

from appliance.console.render import page
from appliance.console.resources import Resources, read_resources
from appliance.learning.service import LearningStatus
from appliance.learning.switch import lineage

SWITCHES_READ = 200


@dataclass(frozen=True)
class Overview:
    """The cards at the top.

    Attributes:
        model: name of the bundle.
        adapter: what answers now; None is the base model.
        since: when that came into service.
        can_roll_back: something else was in service before.
        previous: what that was; None is the base model.
        learning: the learning room's status.
        collecting: exchanges with devices are stored.
        paused: why they are not at the moment, though they should be.
        resources: a fresh reading.
    """

    model: str
    adapter: str | None
    since: float
    can_roll_back: bool
    previous: str | None
    learning: LearningStatus
    collecting: bool
    paused: str | None
    resources: Resources


def add_routes(blueprint: Blueprint) -> None:
    """Put `/` on the blueprint."""
    blueprint.add_route(show, "/", methods=["GET"], name="home")


def overview(ctx: Any) -> Overview:
    """Read the cards' figures. Blocking."""
    serving = ctx.engine.adapter
    switches = ctx.store.adapters.switches(SWITCHES_READ)
    line = lineage(switches)
    before = line[: line.index(serving)] if serving in line else line
    return Overview(
        model=ctx.bundle.manifest.name,
        adapter=serving,
        since=switches[0].at if switches else ctx.started_at,
        can_roll_back=bool(before) or serving is not None,
        previous=before[-1] if before else None,
        learning=ctx.learning.status(),
        collecting=ctx.config.collect.enabled,
        paused=ctx.collector.paused,
        resources=read_resources(ctx.home.root),
    )


async def show(request: Request) -> HTTPResponse:
    """The page."""
    found = await asyncio.to_thread(overview, request.app.ctx)
    return page(request, "home.html", section="home", overview=found)
