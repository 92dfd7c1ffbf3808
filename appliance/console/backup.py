"""Backups: make, fetch, delete one, and put one back."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from sanic import Blueprint, HTTPResponse, Request
from sanic.exceptions import NotFound
from sanic.response import file_stream

from appliance.backup import archive, restore
from appliance.backup.automatic import BackupState
from appliance.backup.mend import Mended, dismiss_news, read_news
from appliance.console.actions import OWNER, audit
from appliance.console.render import back, form_field, page
from appliance.console.upload import received_file
from appliance.errors import ShammahError
from appliance.home import Home
from appliance.storage.usage import Usage, measure

PATH = "/backup"
UPLOAD_LIMIT = 20_000_000_000
"""Bytes. The disk ends it before; the figure is there so that something does."""


@dataclass(frozen=True)
class Backups:
    """What the page shows.

    Attributes:
        archives: newest first.
        asides: what earlier restores moved aside, newest first.
        waiting: a restore waits for a restart.
        forgotten: when the owner last had something forgotten; older backups still hold it.
        state: how the automatic ones go.
        every: hours between them; 0 when none are made.
        news: a damaged database that was put right.
        usage: what takes how much of the disk.
        surplus: bytes that may go.
    """

    archives: list[archive.Backup]
    asides: list[restore.Aside]
    waiting: bool
    forgotten: float | None
    state: BackupState
    every: float
    news: Mended | None
    usage: Usage
    surplus: int


def add_routes(blueprint: Blueprint) -> None:
    """Put `/backup` on the blueprint."""
    blueprint.add_route(show, PATH, methods=["GET"], name="backup")
    blueprint.add_route(make, f"{PATH}/make", methods=["POST"], name="backup_make")
    blueprint.add_route(fetch, f"{PATH}/file/<name:str>", methods=["GET"], name="backup_file")
    blueprint.add_route(bring, f"{PATH}/bring", methods=["POST"], name="backup_bring", stream=True)
    blueprint.add_route(delete, f"{PATH}/delete", methods=["POST"], name="backup_delete")
    blueprint.add_route(confirm, f"{PATH}/restore/<name:str>", methods=["GET"], name="backup_confirm")
    blueprint.add_route(put_back, f"{PATH}/restore", methods=["POST"], name="backup_restore")
    blueprint.add_route(cancel, f"{PATH}/cancel", methods=["POST"], name="backup_cancel")
    blueprint.add_route(seen, f"{PATH}/seen", methods=["POST"], name="backup_seen")
    blueprint.add_route(tidy, f"{PATH}/tidy", methods=["POST"], name="backup_tidy")


def backups(ctx: Any) -> Backups:
    """What there is. Blocking."""
    home: Home = ctx.home
    forgotten = ctx.store.audit.list(1, families=("examples.forget",))
    return Backups(
        archive.backups(home),
        restore.asides(home),
        restore.pending(home),
        forgotten[0].at if forgotten else None,
        ctx.upkeep.backups.state,
        ctx.config.backup.every_hours,
        read_news(home),
        measure(home),
        ctx.upkeep.plan().size,
    )


async def show(request: Request) -> HTTPResponse:
    """The list."""
    found = await asyncio.to_thread(backups, request.app.ctx)
    return page(request, "backup.html", section="settings", backups=found)


async def make(request: Request) -> HTTPResponse:
    """Write a backup now. The page waits for it: some seconds for a home of some hundred megabytes."""
    ctx = request.app.ctx
    manifest = ctx.bundle.manifest
    try:
        # Begun is finished, even if the browser leaves.
        made = await asyncio.shield(
            asyncio.to_thread(archive.create, ctx.home, ctx.store, manifest.name, manifest.base_hash)
        )
    except ShammahError as error:
        return back(request, error.message, "bad", PATH)
    await audit(request, "backup.created", name=made.name)
    return back(request, "The backup is made, and was read again to be sure.", to=PATH)


async def fetch(request: Request, name: str) -> HTTPResponse:
    """One as a file, to keep elsewhere."""
    try:
        path = archive.find(request.app.ctx.home, name)
    except ShammahError as error:
        raise NotFound(error.message) from error
    await audit(request, "backup.downloaded", name=name)
    response: HTTPResponse = await file_stream(path, mime_type="application/gzip", filename=name)  # type: ignore[assignment]
    return response


async def bring(request: Request) -> HTTPResponse:
    """Take in a backup that was kept elsewhere; it is only put among the others."""
    home = request.app.ctx.home
    try:
        await asyncio.to_thread(home.backups.mkdir, exist_ok=True, mode=0o700)
        async with received_file(request, home.backups, UPLOAD_LIMIT, lambda given: "draft.tar.gz") as draft:
            brought = await asyncio.to_thread(archive.adopt, home, draft)
    except ShammahError as error:
        return back(request, error.message, "bad", PATH)
    await audit(request, "backup.uploaded", name=brought.name)
    return back(request, "The backup is here, and is whole. Restore it when you like.", to=PATH)


async def delete(request: Request) -> HTTPResponse:
    """Remove a backup, or what was there before a restore."""
    name, home = form_field(request, "name"), request.app.ctx.home
    aside = form_field(request, "kind") == "aside"
    try:
        await asyncio.to_thread(restore.delete_aside if aside else archive.delete, home, name)
    except ShammahError as error:
        return back(request, error.message, "bad", PATH)
    await audit(request, "backup.deleted", name=name)
    return back(request, "Deleted.", to=PATH)


async def confirm(request: Request, name: str) -> HTTPResponse:
    """What putting a backup back would mean."""
    home = request.app.ctx.home
    try:
        path = archive.find(home, name)
        manifest = await asyncio.to_thread(archive.read_manifest, path)
    except (ShammahError, FileNotFoundError) as error:
        text = error.message if isinstance(error, ShammahError) else "It is not there any more."
        return back(request, text, "bad", PATH)
    return page(request, "restore.html", section="settings", name=name, manifest=manifest)


async def put_back(request: Request) -> HTTPResponse:
    """Check a backup and have it put in place at the next start; or what was there before a restore."""
    name, ctx = form_field(request, "name"), request.app.ctx
    try:
        if form_field(request, "kind") == "aside":
            await asyncio.to_thread(restore.stage_aside, ctx.home, name)
        else:
            path = archive.find(ctx.home, name)
            await asyncio.shield(asyncio.to_thread(restore.stage, ctx.home, path, OWNER))
    except ShammahError as error:
        return back(request, error.message, "bad", PATH)
    await audit(request, "backup.staged", name=name)
    return back(request, "Checked, and ready. It takes effect with a restart.", to=PATH)


async def cancel(request: Request) -> HTTPResponse:
    """Do not restore after all."""
    try:
        await asyncio.to_thread(restore.cancel, request.app.ctx.home)
    except ShammahError as error:
        return back(request, error.message, "bad", PATH)
    await audit(request, "backup.cancelled")
    return back(request, "Everything stays as it is.", to=PATH)


async def seen(request: Request) -> HTTPResponse:
    """The owner has read what was mended."""
    await asyncio.to_thread(dismiss_news, request.app.ctx.home)
    return back(request, to=PATH)


async def tidy(request: Request) -> HTTPResponse:
    """Remove what may go, now."""
    try:
        done = await asyncio.shield(asyncio.to_thread(request.app.ctx.upkeep.tidy, OWNER))
    except ShammahError as error:
        return back(request, error.message, "bad", PATH)
    things = "1 thing" if len(done.removed) == 1 else f"{len(done.removed):,} things"
    return back(request, f"Removed {things}, {done.size / 1e6:,.1f} MB.", to=PATH)
