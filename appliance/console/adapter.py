"""One adapter: how it was judged, when it served, what taught it; taking it away, in and out."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from functools import partial
from typing import Any

from sanic import Blueprint, HTTPResponse, Request
from sanic.response import html

from appliance.adapters.file import SUFFIX
from appliance.console.actions import OWNER, audit
from appliance.console.adapters import BASE, AdapterLine, read_lines, way_back
from appliance.console.render import back, form_field, page, render, wants_fragment
from appliance.console.upload import received_file
from appliance.errors import NotFound, ShammahError
from appliance.learning.intake import fit_name
from appliance.learning.replay import runs_behind
from appliance.learning.service import LearningStatus
from appliance.learning.switch import HISTORY
from appliance.store.adapters import Switch
from appliance.store.runs import Run

MAX_UPLOAD = 200_000_000
"""The whole file is looked at in memory before it is taken in, as is one that is dropped in."""
CHUNK = 1 << 18
ACTS = ("promote", "rollback", "pin", "unpin", "upload")


@dataclass(frozen=True)
class Detail:
    """The page of an adapter.

    Attributes:
        line: itself.
        serving: what answers now; None is the base model.
        run: the run that made it, if one did.
        runs: how many runs taught it, those before it in its line included.
        examples: how many examples these were given in all.
        answers: how many answers it has given.
        children: those that grew from it.
        parent_known: the one it grew from has a page.
        switches: when it came and went, newest first.
        fallback: a roll back would lead to it.
        learning: the learning room's status.
    """

    line: AdapterLine
    serving: str | None
    run: Run | None
    runs: int
    examples: int
    answers: int
    children: list[str]
    parent_known: bool
    switches: list[Switch]
    fallback: bool
    learning: LearningStatus


def add_routes(blueprint: Blueprint) -> None:
    """Put `/adapters/…` on the blueprint."""
    blueprint.add_route(upload, "/adapters/upload", methods=["POST"], name="upload", stream=True)
    blueprint.add_route(show, "/adapters/<name:str>", methods=["GET"], name="adapter")
    blueprint.add_route(download, "/adapters/<name:str>/file", methods=["GET"], name="download")
    blueprint.add_route(delete, "/adapters/<name:str>/delete", methods=["POST"], name="delete_adapter")
    for act in ACTS:  # what an adapter may be called, too
        blueprint.add_route(
            partial(show, name=act), f"/adapters/{act}", methods=["GET"], name=f"adapter_{act}"
        )


def detail(ctx: Any, name: str) -> Detail:
    """Gather it. Blocking.

    Raises:
        NotFound: nothing is known of such an adapter.
    """
    store = ctx.store
    row = store.adapters.get(name)
    if row is None:
        raise NotFound(f"There is no adapter {name!r}.", param="name")
    learning = ctx.learning.status()
    (line,) = read_lines(ctx, [row], learning)
    switches = store.adapters.switches(HISTORY)
    back_to = way_back(ctx, switches)
    others = store.adapters.list(reports=False)
    taught, _ = runs_behind(name, {other.name: other for other in others}.get)
    return Detail(
        line=line,
        serving=ctx.engine.adapter,
        run=_run(store, row.run_id),
        runs=len(taught),
        examples=store.runs.examples(taught),
        answers=store.ratings.answers(name, 0.0),
        children=[other.name for other in others if other.parent == name],
        parent_known=any(other.name == row.parent for other in others),
        switches=[switch for switch in switches if name in (switch.to, switch.from_)],
        fallback=back_to.there and back_to.to == name,
        learning=learning,
    )


def _run(store: Any, run_id: str | None) -> Run | None:
    try:
        return None if run_id is None else store.runs.get(run_id)
    except NotFound:
        return None


async def show(request: Request, name: str) -> HTTPResponse:
    """The page; without what is around it when a script refreshes it."""
    found = await asyncio.to_thread(detail, request.app.ctx, name)
    if wants_fragment(request):
        return html(render("parts/adapter.html", adapter=found, base=BASE))
    return page(request, "adapter.html", section="adapters", adapter=found, base=BASE)


async def download(request: Request, name: str) -> None:
    """The file, as it is read."""
    path = await asyncio.to_thread(request.app.ctx.registry.path, name)
    await audit(request, "download", adapter=name)
    with await asyncio.to_thread(path.open, "rb") as file:
        headers = {
            "Content-Length": str(os.fstat(file.fileno()).st_size),
            "Content-Disposition": f'attachment; filename="{path.name}"',
        }
        response = await request.respond(headers=headers, content_type="application/octet-stream")
        while chunk := await asyncio.to_thread(file.read, CHUNK):
            await response.send(chunk)


async def upload(request: Request) -> HTTPResponse:
    """Take an adapter in. What is unfit is refused at once; the gate judges the rest."""
    ctx = request.app.ctx
    try:
        async with received_file(
            request, ctx.home.adapters, MAX_UPLOAD, lambda given: f"{fit_name(given)}{SUFFIX}"
        ) as file:
            name = await asyncio.to_thread(ctx.learning.take_in, file, OWNER)
    except ShammahError as error:
        return back(request, f"Nothing was added. {error.message}", "bad")
    return back(
        request,
        f"{name} is here. It is checked now, and put in service if it passes.",
        to=f"/adapters/{name}",
    )


async def delete(request: Request, name: str) -> HTTPResponse:
    """Delete the file; what is known of it stays."""
    try:
        if form_field(request, "confirm") != "yes":
            return back(request, "Nothing was deleted: confirm it first.", "bad", f"/adapters/{name}")
        await request.app.ctx.learning.remove(name, OWNER)
    except ShammahError as error:
        return back(request, error.message, "bad")
    return back(request, f"{name} is deleted. What is known of it stays in the list.", to="/adapters")
