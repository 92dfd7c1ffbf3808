"""The audit trail: who did what, and from where."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlencode

from sanic import Blueprint, HTTPResponse, Request

from appliance.console.render import page

SHOWN = 100
SUBJECTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "access": ("Logins and keys", ("login", "logout", "owner", "account", "key", "setup")),
    "adapters": ("Adapters", ("adapter", "download")),
    "learning": ("Learning", ("train", "cancel", "retry", "review", "feedback")),
    "examples": ("Examples", ("examples", "conversation")),
    "settings": ("Settings and data", ("settings", "backup", "store", "storage", "restart")),
    "models": ("Models", ("model",)),
}
"""What the list can be narrowed to: title, and how the names of such acts begin, after a `console.`."""
_WHO = ("owner", "appliance")


def add_routes(blueprint: Blueprint) -> None:
    """Put `/audit` on the blueprint."""
    blueprint.add_route(show, "/audit", methods=["GET"], name="audit")


async def show(request: Request) -> HTTPResponse:
    """A page of the trail; all that it shows is told by its address."""
    chosen = {name: request.args.get(name, "").strip() for name in ("who", "about", "search", "before")}
    who, about, search = chosen["who"], chosen["about"], chosen["search"][:200]
    given = chosen["before"]
    before = int(given) if given.isascii() and given.isdigit() and len(given) < 19 else None

    def read() -> list[Any]:
        entries: list[Any] = request.app.ctx.store.audit.list(
            SHOWN + 1,
            before=before,
            actor=who if who in _WHO else None,
            families=_families(about),
            search=search,
        )
        return entries

    entries = await asyncio.to_thread(read)
    older = entries[SHOWN - 1].seq if len(entries) > SHOWN else None
    kept = {"who": who, "about": about, "search": search}
    query = {name: value for name, value in kept.items() if value}
    return page(
        request,
        "audit.html",
        section="settings",
        entries=entries[:SHOWN],
        subjects={name: title for name, (title, _) in SUBJECTS.items()},
        chosen=kept,
        older=f"/audit?{urlencode({**query, 'before': older})}" if older is not None else None,
        newest=f"/audit?{urlencode(query)}" if before is not None else None,
    )


def _families(about: str) -> tuple[str, ...]:
    _, names = SUBJECTS.get(about, ("", ()))
    return (*names, *(f"console.{name}" for name in names))
