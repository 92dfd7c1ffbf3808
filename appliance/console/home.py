"""The first page: what the box does, and what needs the owner."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any, Literal

from sanic import Blueprint, HTTPResponse, Request

from appliance.backup.mend import read_news
from appliance.console.acts import in_words, path_of
from appliance.console.adapters import WayBack, way_back
from appliance.console.needs import Need, Safety, find_needs
from appliance.console.render import page
from appliance.console.resources import Resources, read_resources
from appliance.console.usage import usage
from appliance.learning.service import LearningStatus
from appliance.learning.switch import APPLIANCE
from appliance.served import read_served
from appliance.settings.file import read
from appliance.store.audit import AuditEntry
from appliance.store.owner import password_set
from appliance.store.runs import Run

SWITCHES_READ = 200
HAPPENED_SHOWN = 10
_ENDINGS = {
    "promoted": "learned, passed every check, and was put in service",
    "rejected": "learned, but did not pass every check",
    "failed": "failed",
    "cancelled": "was stopped",
    "parked": "was given up",
}


@dataclass(frozen=True)
class Overview:
    """The cards at the top.

    Attributes:
        model: name of the bundle.
        adapter: what answers now; None is the base model.
        since: when that came into service.
        way_back: where a roll back leads.
        learning: the learning room's status.
        collecting: exchanges with devices are stored.
        paused: why they are not at the moment, though they should be.
        resources: a fresh reading.
    """

    model: str
    adapter: str | None
    since: float
    way_back: WayBack
    learning: LearningStatus
    collecting: bool
    paused: str | None
    resources: Resources


@dataclass(frozen=True)
class Happening:
    """Something that happened.

    Attributes:
        who: "owner", "appliance", or an address.
        text: what, in words.
        path: where more is said; empty when nowhere.
    """

    at: float
    who: str
    text: str
    tone: Literal["good", "bad", "plain"]
    path: str


@dataclass(frozen=True)
class Home:
    """What the box does, and what needs the owner."""

    overview: Overview
    needs: list[Need]


def add_routes(blueprint: Blueprint) -> None:
    """Put `/` on the blueprint."""
    blueprint.add_route(show, "/", methods=["GET"], name="home")


def overview(ctx: Any) -> Overview:
    """Read the cards' figures. Blocking."""
    serving = ctx.engine.adapter
    switches = ctx.store.adapters.switches(SWITCHES_READ)
    return Overview(
        model=ctx.bundle.manifest.name,
        adapter=serving,
        since=switches[0].at if switches else ctx.started_at,
        way_back=way_back(ctx, switches),
        learning=ctx.learning.status(),
        collecting=ctx.config.collect.enabled,
        paused=ctx.collector.paused,
        resources=read_resources(ctx.home.root),
    )


def home(ctx: Any) -> Home:
    """Gather it. Blocking."""
    seen = overview(ctx)
    needs = find_needs(
        time.time(),
        seen,
        protected=password_set(ctx.store),
        devices=ctx.store.keys.count(),
        fallback=read_served(ctx.home).fallback,
        safety=Safety(
            read_news(ctx.home), ctx.upkeep.state, ctx.upkeep.backups.state, read(ctx.home.config).problems
        ),
        errors=0 if (looked := ctx.doctor.latest()) is None else looked.count("error"),
    )
    return Home(seen, needs)


def happened(ctx: Any) -> list[Happening]:
    """The last things that happened, newest first: acts from the audit trail, and runs that ended."""
    acts = [_act(entry) for entry in ctx.store.audit.list(HAPPENED_SHOWN)]
    runs = [_ended(run) for run in ctx.store.runs.list(HAPPENED_SHOWN) if run.ended is not None]
    return sorted(acts + runs, key=lambda item: item.at, reverse=True)[:HAPPENED_SHOWN]


def _act(entry: AuditEntry) -> Happening:
    bad = entry.action in ("login.failed", "login.throttled", "adapter.withdraw")
    text = in_words(entry)
    return Happening(entry.at, entry.actor, text, "bad" if bad else "plain", path_of(entry))


def _ended(run: Run) -> Happening:
    examples = "1 example" if run.examples == 1 else f"{run.examples:,} examples"
    tone: Literal["good", "bad", "plain"] = "plain"
    if run.state == "promoted":
        tone = "good"
    elif run.state in ("rejected", "failed", "parked"):
        tone = "bad"
    text = f"A run on {examples} {_ENDINGS.get(run.state, run.state)}"
    return Happening(run.ended or run.created, APPLIANCE, text, tone, f"/runs/{run.id}")


async def show(request: Request) -> HTTPResponse:
    """The page."""
    ctx = request.app.ctx
    found, asked, lately = await asyncio.to_thread(lambda: (home(ctx), usage(ctx), happened(ctx)))
    return page(request, "home.html", section="home", home=found, usage=asked, happened=lately)
