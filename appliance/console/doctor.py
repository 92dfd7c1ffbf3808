"""Health: what the doctor finds. A quick look each time the page is opened, all of it at a button's press."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sanic import Blueprint, HTTPResponse, Request
from sanic.response import html

from appliance.console.render import back, page, render
from appliance.doctor.examine import CHECKS, Report
from appliance.doctor.finding import Finding
from appliance.doctor.rounds import Rounds, UnderWay
from appliance.errors import Conflict

PATH = "/doctor"
WHOLE = f"{PATH}/whole"
TITLES = {check.id: check.title for check in CHECKS}


@dataclass(frozen=True)
class Health:
    """What the page shows.

    Attributes:
        report: what was found; None while the first whole examination is going on.
        under_way: a whole examination, while one is going on.
        looked: when the last whole examination ended.
        wrong: errors, then warnings.
        notes: what asks for nothing.
        well: what is as it should be.
        titles: of the checks, by their ids.
    """

    report: Report | None
    under_way: UnderWay | None
    looked: float | None
    wrong: tuple[Finding, ...]
    notes: tuple[Finding, ...]
    well: tuple[Finding, ...]
    titles: dict[str, str]


def add_routes(blueprint: Blueprint) -> None:
    """Put `/doctor` on the blueprint."""
    blueprint.add_route(show, PATH, methods=["GET"], name="doctor")
    blueprint.add_route(show_whole, WHOLE, methods=["GET"], name="doctor_whole")
    blueprint.add_route(part, f"{WHOLE}/part", methods=["GET"], name="doctor_part")
    blueprint.add_route(run, f"{PATH}/run", methods=["POST"], name="doctor_run")


def health(ctx: Any, *, whole: bool) -> Health:
    """A quick look made now, or the last whole one. Blocking."""
    rounds: Rounds = ctx.doctor
    under_way, last = rounds.under_way, rounds.whole
    report = last if whole else rounds.look()

    def of(*levels: str) -> tuple[Finding, ...]:
        findings = report.findings if report else ()
        return tuple(one for level in levels for one in findings if one.level == level)

    return Health(
        report, under_way, last.at if last else None, of("error", "warning"), of("note"), of("ok"), TITLES
    )


async def show(request: Request) -> HTTPResponse:
    """The page, after a quick look."""
    found = await asyncio.to_thread(health, request.app.ctx, whole=False)
    return page(request, "doctor.html", section="settings", doctor=found)


async def show_whole(request: Request) -> HTTPResponse:
    """What the last whole examination found, or how far the one going on is."""
    found = await asyncio.to_thread(health, request.app.ctx, whole=True)
    if found.report is None and found.under_way is None:  # before the last start, perhaps
        return back(request, to=PATH)
    return page(request, "doctor.html", section="settings", doctor=found)


async def part(request: Request) -> HTTPResponse:
    """The same, for the page that is open."""
    found = await asyncio.to_thread(health, request.app.ctx, whole=True)
    return html(render("parts/doctor.html", doctor=found))


async def run(request: Request) -> HTTPResponse:
    """Begin to look at everything."""
    with suppress(Conflict):  # then the page shows the one going on
        request.app.ctx.doctor.begin()
    return back(request, to=WHOLE)
