"""The queue: every example, whatever its state, to search, filter, sort and page through."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from typing import Any

from sanic import Blueprint, HTTPResponse, Request
from sanic.response import html

from appliance.console.listing import ALL, NO_DEVICE, Listing, given_in, read_listing
from appliance.console.render import page, render
from appliance.errors import InvalidRequest
from appliance.store.browse import SORTS, Page, Total
from appliance.store.example import KINDS, STATES, Example

SIZE = 50
KIND_NAMES = {
    "automatic": "Collected",
    "praise": "Praise",
    "correction": "Correction",
    "critique": "Critique",
}
STATE_NAMES = {
    "pending": "Waiting",
    "review": "Needs review",
    "training": "Being learned",
    "used": "Learned",
    "parked": "Parked",
    "superseded": "Replaced",
    "excluded": "Excluded",
    ALL: "All",
}
STATE_MEANINGS = {
    "pending": "They are learned in the next run.",
    "review": "Somebody said the answer is wrong, and no better one is known yet. They are not learned.",
    "training": "A run is learning from them now.",
    "used": "A run has learned from them.",
    "parked": "Runs on them failed again and again, so they wait for you.",
    "superseded": "Newer feedback took their place. They are not learned any more.",
    "excluded": "You took them out, or the answers of an adapter that was given up. They are not learned.",
    ALL: "Everything the box has kept to learn from, whatever became of it.",
}
SORT_NAMES = {
    "newest": "Newest first",
    "oldest": "Oldest first",
    "heaviest": "Heaviest first",
    "lightest": "Lightest first",
}
ACTS_BY_STATE: dict[str, tuple[str, ...]] = {
    "pending": ("weight", "exclude", "forget"),
    "review": ("weight", "exclude", "forget"),
    "parked": ("put-back", "weight", "exclude", "forget"),
    "excluded": ("put-back", "forget"),
    ALL: ("weight", "exclude", "put-back", "forget"),
}
"""What can be done to many at once; what was learned or replaced can only be forgotten."""


@dataclass(frozen=True)
class Top:
    """What stands above the rows, and follows what happens.

    Attributes:
        counts: by state, of what is looked for; None while a text is searched for, which takes its time.
        total: how many the list has.
        seen: when the rows were read.
        fresh: how many have come in since.
    """

    counts: dict[str, int] | None
    total: Total
    seen: float
    fresh: Total


@dataclass(frozen=True)
class Shown:
    """A page of the list.

    Attributes:
        at: the cursor of this page, for the way back from an example.
        problem: why there are no rows: what was asked for cannot be.
        devices: of which there may be examples: id and name.
    """

    listing: Listing
    top: Top
    page: Page
    at: str
    problem: InvalidRequest | None
    devices: dict[str, str]

    @property
    def acts(self) -> tuple[str, ...]:
        """What can be done to many of them."""
        return ACTS_BY_STATE.get(self.listing.state, ("forget",))


def add_routes(blueprint: Blueprint) -> None:
    """Put `/queue` on the blueprint."""
    blueprint.add_route(show, "/queue", methods=["GET"], name="queue")
    blueprint.add_route(top_part, "/queue/top", methods=["GET"], name="queue-top")


async def show(request: Request) -> HTTPResponse:
    """A page of the list."""
    given, cursor = given_in(request.args), request.args.get("at") or ""
    found = await asyncio.to_thread(gather, request.app.ctx, given, cursor)
    return page(
        request,
        "queue.html",
        status=200 if found.problem is None else 400,
        section="queue",
        shown=found,
        **names(),
    )


async def top_part(request: Request) -> HTTPResponse:
    """The counts above the rows, anew. The rows stay: the owner may be about to press one."""
    listing = read_listing(given_in(request.args))
    try:
        seen = float(request.args.get("seen") or "")
    except ValueError:
        raise InvalidRequest("`seen` is a time in seconds.", param="seen") from None
    found = await asyncio.to_thread(top, request.app.ctx, listing, seen)
    return html(render("parts/queue_top.html", listing=listing, top=found, **names()))


def gather(ctx: Any, given: tuple[tuple[str, str], ...], cursor: str) -> Shown:
    """Read a page. What cannot be is told with the form as it was sent. Blocking."""
    devices = device_names(ctx)
    seen = time.time()
    try:
        listing = read_listing(given)
        rows = ctx.store.browse.page(
            listing.filter, sort=listing.sort, cursor=cursor or None, size=SIZE, count=False
        )
        return Shown(listing, top(ctx, listing, seen), rows, cursor, None, devices)
    except InvalidRequest as problem:
        listing, nothing = Listing(given), Total(0, False)
        return Shown(
            listing, Top(None, nothing, seen, nothing), Page([], None, None, nothing), "", problem, devices
        )


def top(ctx: Any, listing: Listing, seen: float) -> Top:
    """Count. Blocking."""
    browse, filter = ctx.store.browse, listing.filter
    # Looks at nothing but the newest end of an index.
    fresh = browse.count(replace(filter, since=max(seen, filter.since or 0.0)))
    if filter.words:
        return Top(None, browse.count(filter), seen, fresh)
    counts = browse.counts(replace(filter, states=()))
    total = sum(counts[state] for state in filter.states or STATES)
    return Top({**counts, ALL: sum(counts.values())}, Total(total, False), seen, fresh)


def device_names(ctx: Any) -> dict[str, str]:
    """What devices are called, by the id that examples have. Blocking."""
    return {
        device.id: f"{device.name} (revoked)" if device.revoked else device.name
        for device in ctx.store.keys.list()
    }


def device_name(example: Example, devices: dict[str, str]) -> str | None:
    """Who said it, as a person calls it; None for nobody's device."""
    return None if example.device is None else devices.get(example.device, example.device)


def names() -> dict[str, Any]:
    """The words of the templates for what the store calls otherwise."""
    return {
        "kinds": {kind: KIND_NAMES[kind] for kind in KINDS},
        "states": STATE_NAMES,
        "meanings": STATE_MEANINGS,
        "sorts": {sort: SORT_NAMES[sort] for sort in SORTS},
        "no_device": NO_DEVICE,
    }
