"""Runs: the list of them, what each came to, and the one that is going on."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from markupsafe import Markup
from sanic import Blueprint, HTTPResponse, Request
from sanic.response import html

from appliance.console.actions import audit
from appliance.console.charts import Axis, Series, line_chart, plain
from appliance.console.paging import Sheet, page_number, sheet
from appliance.console.render import back, form_field, page, render, wants_fragment, when
from appliance.errors import InvalidRequest, ShammahError
from appliance.learning.progress import RunProgress
from appliance.learning.service import LearningStatus
from appliance.store.runs import RUN_STATES, Run, RunState

PAGE = 25
CHARTED = 60
"""So many of the last runs are in the chart."""

FILTERS: tuple[tuple[RunState | None, str], ...] = (
    (None, "All"),
    ("promoted", "Promoted"),
    ("accepted", "Accepted"),
    ("rejected", "Rejected"),
    ("failed", "Failed"),
    ("cancelled", "Stopped"),
    ("parked", "Parked"),
)


@dataclass(frozen=True)
class Listing:
    """A page of the list.

    Attributes:
        tabs: the filters: path, name and number of runs.
        path: of this page.
        sheet: which page.
        any: whether there has been any run at all.
        chart: what the last runs did for held-out examples; empty when too few have measured it.
    """

    runs: tuple[Run, ...]
    tabs: tuple[tuple[str, str, int], ...]
    tab: str
    path: str
    sheet: Sheet
    any: bool
    chart: Markup


@dataclass(frozen=True)
class GoingOn:
    """The card at the top: the run going on, or what the next waits for."""

    run: RunProgress | None
    learning: LearningStatus


def add_routes(blueprint: Blueprint) -> None:
    """Put `/runs` on the blueprint."""
    blueprint.add_route(show, "/runs", methods=["GET"], name="runs")
    blueprint.add_route(train, "/runs/train", methods=["POST"], name="train")
    blueprint.add_route(cancel, "/runs/cancel", methods=["POST"], name="cancel")


def listing(ctx: Any, state: RunState | None, number: int) -> Listing:
    """A page of the list, by its number from 1; beyond the last, the last. Blocking."""
    counts = ctx.store.runs.counts()
    everything = sum(counts.values())
    shown = sheet(number, everything if state is None else counts[state], PAGE)
    return Listing(
        runs=tuple(ctx.store.runs.list(PAGE, shown.start, state)),
        tabs=tuple(
            (_path(which), name, everything if which is None else counts[which]) for which, name in FILTERS
        ),
        tab=_path(state),
        path=_path(state, shown.number),
        sheet=shown,
        any=everything > 0,
        chart=_chart(ctx) if state is None and shown.number == 1 else Markup(),
    )


def going_on(ctx: Any) -> GoingOn:
    """What happens now. Blocking."""
    status = ctx.learning.status()
    return GoingOn(live(ctx, status.run), status)


def live(ctx: Any, progress: RunProgress | None) -> RunProgress | None:
    """The progress, unless its run has just ended: its last word may come a moment late."""
    ended = progress is None or ctx.store.runs.get(progress.id).ended is not None
    return None if ended else progress


async def show(request: Request) -> HTTPResponse:
    """The list; for a script, only what changes of it."""
    ctx, state, number = request.app.ctx, _state(request), page_number(request)
    found = await asyncio.to_thread(listing, ctx, state, number)
    if wants_fragment(request):
        return html(render("parts/runs.html", listing=found))
    now = await asyncio.to_thread(going_on, ctx)
    return page(request, "runs.html", section="runs", listing=found, going_on=now)


async def train(request: Request) -> HTTPResponse:
    """Start a run now."""
    try:
        run = await asyncio.to_thread(request.app.ctx.learning.request, "person")
    except ShammahError as error:
        return back(request, error.message, "bad")
    await audit(request, "train", run=run.id)
    return back(request, f"Run {run.id} is on its way. This page follows it.")


async def cancel(request: Request) -> HTTPResponse:
    """Stop the run that is going on, if it is the one the form names; its examples go back to the queue."""
    wanted = form_field(request, "run") or None
    try:
        await asyncio.to_thread(request.app.ctx.learning.cancel, wanted)
    except ShammahError as error:
        return back(request, error.message, "bad")
    await audit(request, "cancel", **({"run": wanted} if wanted else {}))
    return back(request, "The run is being stopped. Its examples go back to the queue.")


def _state(request: Request) -> RunState | None:
    state = request.args.get("state")
    for known in RUN_STATES:
        if state == known:
            return known
    if state:
        raise InvalidRequest(
            f"Runs are never {state!r}. Choose one of the filters of the list.", param="state"
        )
    return None


def _path(state: RunState | None, number: int = 1) -> str:
    query = {**({"state": state} if state else {}), **({"page": number} if number > 1 else {})}
    return f"/runs?{urlencode(query)}" if query else "/runs"


def _chart(ctx: Any) -> Markup:
    measured = ctx.store.runs.heldout(CHARTED)
    if len(measured) < 2:
        return Markup()
    before = Series("Before the run", [(at, value) for at, value, _ in measured], 2, marks=True)
    after = Series("After it", [(at, value) for at, _, value in measured], 1, marks=True)
    return line_chart(
        "Loss on examples kept out of training",
        (before, after),
        Axis("Run of", lambda at: when(at, "short")),
        Axis("loss", plain),
    )
