"""What was changed in the settings, when and by whom; each change can be taken back."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from sanic import Blueprint, HTTPResponse, Request

from appliance.console.actions import OWNER
from appliance.console.paging import Sheet, page_number, sheet
from appliance.console.render import back, page
from appliance.console.setting_fields import Shown, show
from appliance.console.settings import notices, outcome
from appliance.errors import ShammahError
from appliance.settings.editor import Page
from appliance.store.changes import Change

A_PAGE = 20
BRIEF = 3
"""Differences of a change that the list shows; the rest is on its page."""


@dataclass(frozen=True)
class Entry:
    """A change in the list."""

    change: Change
    differences: tuple[Shown, ...]

    @property
    def more(self) -> int:
        return max(len(self.differences) - BRIEF, 0)

    @property
    def brief(self) -> tuple[Shown, ...]:
        return self.differences[:BRIEF]


@dataclass(frozen=True)
class History:
    """A page of the list."""

    entries: list[Entry]
    sheet: Sheet
    found: Page


@dataclass(frozen=True)
class Detail:
    """A change, and what undoing it would do, or why that cannot be."""

    entry: Entry
    undo: tuple[Shown, ...]
    obstacle: str | None


def add_routes(blueprint: Blueprint) -> None:
    """Put `/settings/history` on the blueprint."""
    blueprint.add_route(show_list, "/settings/history", methods=["GET"], name="settings_history")
    blueprint.add_route(
        show_change, "/settings/history/<change_id:int>", methods=["GET"], name="settings_change"
    )
    blueprint.add_route(
        undo, "/settings/history/<change_id:int>/undo", methods=["POST"], name="settings_undo"
    )


def history(ctx: Any, number: int) -> History:
    """A page of the list, newest first. Blocking."""
    part = sheet(number, ctx.store.changes.count(), A_PAGE)
    changes = ctx.store.changes.list(A_PAGE, part.start)
    return History([_entry(change) for change in changes], part, ctx.settings.page())


def detail(ctx: Any, change_id: int) -> Detail:
    """One change. Blocking.

    Raises:
        NotFound: there is none of that number.
    """
    entry = _entry(ctx.store.changes.get(change_id))
    try:
        differences = ctx.settings.preview_undo(change_id)
    except ShammahError as error:
        return Detail(entry, (), error.message)
    return Detail(entry, tuple(map(show, differences)), None)


async def show_list(request: Request) -> HTTPResponse:
    """The list."""
    found = await asyncio.to_thread(history, request.app.ctx, page_number(request))
    return page(
        request,
        "settings_history.html",
        section="settings",
        history=found,
        notices=notices(found.found),
    )


async def show_change(request: Request, change_id: int) -> HTTPResponse:
    """One change, and the button that takes it back."""
    found = await asyncio.to_thread(detail, request.app.ctx, change_id)
    return page(request, "settings_change.html", section="settings", detail=found, entry=found.entry)


async def undo(request: Request, change_id: int) -> HTTPResponse:
    """Take a change back."""
    try:
        change = await asyncio.to_thread(request.app.ctx.settings.undo, change_id, OWNER)
    except ShammahError as error:
        return back(request, error.message, "bad", f"/settings/history/{change_id}")
    done = outcome(change.differences).replace("Saved", "Undone", 1)
    return back(request, done, to="/settings/history")


def _entry(change: Change) -> Entry:
    return Entry(change, tuple(map(show, change.differences)))
