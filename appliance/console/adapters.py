"""Adapters: what has been learned, from what it grew, when it served, and which one answers now."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup
from sanic import Blueprint, HTTPResponse, Request
from sanic.response import html

from appliance.console.actions import OWNER
from appliance.console.lineage import Look, Node, Period, draw, service
from appliance.console.paging import Sheet, page_number, sheet
from appliance.console.render import back, form_field, page, render, wants_fragment
from appliance.errors import InvalidRequest, ShammahError
from appliance.learning.service import LearningStatus
from appliance.learning.switch import HISTORY, lineage
from appliance.store.adapters import AdapterRow, Switch

BASE = "base"
SHOWN = 30
SWITCHES_SHOWN = 20
TOLD = ("heldout", "perplexity", "probes", "recall")
"""The checks of the gate whose measured values stand in the list."""


@dataclass(frozen=True)
class AdapterLine:
    """An adapter as the pages show it.

    Attributes:
        row: what the store knows; in the list without a report for those that are not shown.
        in_service: it answers now.
        on_probation: it has to prove itself.
        waits: a run made it while something else was pinned.
        judging: the gate is looking at it.
        tried: it answers a share of the requests.
        other_model: it was made for another base than the one that is loaded.
        served: when it was in service, oldest first.
        told: the most telling checks of its report.
    """

    row: AdapterRow
    in_service: bool
    on_probation: bool
    waits: bool
    judging: bool
    tried: bool
    other_model: bool
    served: tuple[Period, ...]
    told: tuple[dict[str, Any], ...] = ()

    @property
    def here(self) -> bool:
        """Whether there is a file."""
        return self.row.state not in ("missing", "deleted")

    @property
    def promotable(self) -> bool:
        """Whether the owner may put it in service."""
        return self.row.state == "accepted" and not self.in_service and not self.other_model

    @property
    def look(self) -> Look:
        """How the picture shows it."""
        if self.in_service:
            return "serving"
        if not self.here:
            return "gone"
        if self.row.state == "rejected" or self.row.withdrawn:
            return "refused"
        return "served" if self.served else "accepted"


@dataclass(frozen=True)
class WayBack:
    """Where a roll back leads.

    Attributes:
        there: it leads somewhere.
        to: what would be in service then; None is the base model.
        last: the last switch, whatever its direction; None before the first.
    """

    there: bool
    to: str | None
    last: Switch | None


@dataclass(frozen=True)
class Adapters:
    """The page.

    Attributes:
        lines: those of the page shown, newest first.
        rails: their pieces of the picture, and last the base model's.
        serving: the one that answers now; None is the base model.
        since: when it came into service.
        base_served: when the base model was in service.
        way_back: where a roll back leads.
        learning: the learning room's status.
        switches: the last changes, newest first.
        sheet: which page of them.
    """

    lines: tuple[AdapterLine, ...]
    rails: list[Markup]
    serving: str | None
    since: float
    base_served: tuple[Period, ...]
    way_back: WayBack
    learning: LearningStatus
    switches: list[Switch]
    sheet: Sheet


def add_routes(blueprint: Blueprint) -> None:
    """Put `/adapters` on the blueprint."""
    blueprint.add_route(show, "/adapters", methods=["GET"], name="adapters")
    blueprint.add_route(promote, "/adapters/promote", methods=["POST"], name="promote")
    blueprint.add_route(roll_back, "/adapters/rollback", methods=["POST"], name="rollback")
    blueprint.add_route(pin, "/adapters/pin", methods=["POST"], name="pin")
    blueprint.add_route(unpin, "/adapters/unpin", methods=["POST"], name="unpin")


def read_lines(ctx: Any, rows: Collection[AdapterRow], learning: LearningStatus) -> list[AdapterLine]:
    """What the pages show of adapters. Blocking."""
    serving, base = ctx.engine.adapter, ctx.bundle.manifest.base_hash
    served = service(ctx.store.adapters.switches(HISTORY))
    waiting = {name for name, _ in ctx.store.adapters.waiting(base)}
    on_probation = learning.probation.adapter if learning.probation else None
    trial = learning.run.id if learning.run and learning.run.phase == "canary" else None
    return [
        AdapterLine(
            row=row,
            in_service=row.name == serving,
            on_probation=row.name == serving == on_probation,
            waits=row.name in waiting,
            judging=row.name == learning.judging,
            tried=trial is not None and row.run_id == trial,
            other_model=bool(row.base_hash) and row.base_hash != base,
            served=tuple(served.get(row.name, ())),
            told=_telling(row),
        )
        for row in rows
    ]


def before_serving(ctx: Any, switches: list[Switch]) -> list[str | None]:
    """What a roll back can lead to, the next one last."""
    serving = ctx.engine.adapter
    line = lineage(switches)
    return line[: line.index(serving)] if serving in line else line


def way_back(ctx: Any, switches: list[Switch]) -> WayBack:
    """Where a roll back leads, as `switch.rollback` goes: past what is not here any more. Blocking."""
    last = switches[0] if switches else None
    for name in reversed(before_serving(ctx, switches)):
        row = None if name is None else ctx.store.adapters.get(name)
        fits = row and row.base_hash == ctx.bundle.manifest.base_hash
        if name is None or (row and fits and row.state not in ("missing", "deleted")):
            return WayBack(True, name, last)
    return WayBack(ctx.engine.adapter is not None, None, last)


def adapters(ctx: Any, number: int = 1) -> Adapters:
    """Gather a page of them. Blocking."""
    store, serving = ctx.store, ctx.engine.adapter
    learning = ctx.learning.status()
    switches = store.adapters.switches(HISTORY)
    lines = read_lines(ctx, store.adapters.list(reports=False), learning)
    part = sheet(number, len(lines), SHOWN)
    nodes = [Node(line.row.name, line.row.parent, line.look) for line in lines]
    served = service(switches).get(None, [])
    rails = draw(nodes, "serving" if serving is None else "served" if served else "accepted")
    shown = [_with_report(store, line) for line in lines[part.start : part.end]]
    return Adapters(
        lines=tuple(shown),
        rails=[*rails[part.start : part.end], rails[-1]],
        serving=serving,
        since=switches[0].at if switches else ctx.started_at,
        base_served=tuple(served),
        way_back=way_back(ctx, switches),
        learning=learning,
        switches=switches[:SWITCHES_SHOWN],
        sheet=part,
    )


def _with_report(store: Any, line: AdapterLine) -> AdapterLine:
    row = store.adapters.get(line.row.name) or line.row
    return replace(line, row=row, told=_telling(row))


def _telling(row: AdapterRow) -> tuple[dict[str, Any], ...]:
    checks = (row.report or {}).get("checks") or ()
    return tuple(check for check in checks if check.get("name") in TOLD)


async def show(request: Request) -> HTTPResponse:
    """The list; without the page around it when a script refreshes it."""
    found = await asyncio.to_thread(adapters, request.app.ctx, page_number(request))
    if wants_fragment(request):
        return html(render("parts/adapters.html", adapters=found))
    return page(request, "adapters.html", section="adapters", adapters=found)


async def promote(request: Request) -> HTTPResponse:
    """Put another adapter, or the base model, in service."""
    try:
        name = _named(request)
        await request.app.ctx.switch.promote(name, reason="chosen in the console", actor=OWNER)
    except ShammahError as error:
        return back(request, error.message, "bad")
    return back(request, f"{name or 'The base model'} is in service.")


async def roll_back(request: Request) -> HTTPResponse:
    """Put back what was in service before, unless that is another by now than the page told."""
    ctx = request.app.ctx
    before, told = ctx.engine.adapter, form_field(request, "serving")
    if told and told != (before or BASE):
        now = before or "the base model"
        return back(request, f"Nothing was rolled back: {now} is in service by now. Look again.", "bad")
    try:
        name = await ctx.switch.rollback(OWNER)
    except ShammahError as error:
        return back(request, error.message, "bad")
    kept = f" {before} stays on the box: to have it back, promote it under Adapters." if before else ""
    return back(request, f"Rolled back: {name or 'the base model'} is in service.{kept}")


async def pin(request: Request) -> HTTPResponse:
    """Let only the owner switch from now on."""
    try:
        name = _named(request)
        await request.app.ctx.switch.pin(name, OWNER)
    except ShammahError as error:
        return back(request, error.message, "bad")
    return back(request, f"{name or 'The base model'} is pinned: the box will not switch by itself.")


async def unpin(request: Request) -> HTTPResponse:
    """Let the box switch by itself again."""
    try:
        await request.app.ctx.switch.unpin(OWNER)
    except ShammahError as error:
        return back(request, error.message, "bad")
    return back(request, "Unpinned: the box switches by itself again, to what passes every check.")


def _named(request: Request) -> str | None:
    chosen = form_field(request, "name")
    if not chosen:
        raise InvalidRequest("Name the adapter first.", param="name")
    return None if chosen == BASE else chosen
