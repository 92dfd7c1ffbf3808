"""Adapters: which there are, which one answers, and putting another in service."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from sanic import Blueprint, HTTPResponse, Request

from appliance.console.actions import OWNER
from appliance.console.render import back, form_field, page
from appliance.errors import InvalidRequest, ShammahError
from appliance.learning.probation import load_probation
from appliance.store.adapters import AdapterRow

BASE = "base"
SHOWN = 30


@dataclass(frozen=True)
class AdapterLine:
    """A row of the list of adapters."""

    row: AdapterRow
    in_service: bool
    on_probation: bool


@dataclass(frozen=True)
class Adapters:
    """The list of adapters, newest first, and whether the base model answers."""

    lines: tuple[AdapterLine, ...]
    base_in_service: bool


def add_routes(blueprint: Blueprint) -> None:
    """Put `/adapters` on the blueprint."""
    blueprint.add_route(show, "/adapters", methods=["GET"], name="adapters")
    blueprint.add_route(promote, "/adapters/promote", methods=["POST"], name="promote")
    blueprint.add_route(roll_back, "/adapters/rollback", methods=["POST"], name="rollback")


def adapters(ctx: Any) -> Adapters:
    """The adapters known, newest first. Blocking."""
    rows: list[AdapterRow] = sorted(ctx.store.adapters.list(), key=lambda row: row.created, reverse=True)
    serving = ctx.engine.adapter
    shown = rows[:SHOWN] + [row for row in rows[SHOWN:] if row.name == serving]
    probation = load_probation(ctx.store.settings)
    tried = probation.adapter if probation else None
    lines = (AdapterLine(row, row.name == serving, serving == tried) for row in shown)
    return Adapters(tuple(lines), serving is None)


async def show(request: Request) -> HTTPResponse:
    """The list."""
    found = await asyncio.to_thread(adapters, request.app.ctx)
    return page(request, "adapters.html", section="adapters", adapters=found)


async def promote(request: Request) -> HTTPResponse:
    """Put another adapter, or the base model, in service."""
    chosen = form_field(request, "name")
    name = None if chosen == BASE else chosen
    try:
        if not chosen:
            raise InvalidRequest("Name the adapter to put in service.", param="name")
        await request.app.ctx.switch.promote(name, reason="chosen in the console", actor=OWNER)
    except ShammahError as error:
        return back(request, error.message, "bad")
    return back(request, f"{name or 'The base model'} is in service.")


async def roll_back(request: Request) -> HTTPResponse:
    """Put back what was in service before."""
    try:
        name = await request.app.ctx.switch.rollback(OWNER)
    except ShammahError as error:
        return back(request, error.message, "bad")
    return back(request, f"Rolled back: {name or 'the base model'} is in service.")
