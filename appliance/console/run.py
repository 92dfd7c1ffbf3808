"""One run: what it learned from, how that went, what the gate said, and trying it again."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from sanic import Blueprint, HTTPResponse, Request
from sanic.response import file_stream, html

from appliance.console.actions import audit
from appliance.console.charts import Axis, Series, line_chart, plain
from appliance.console.paging import page_number
from appliance.console.render import back, number, page, render, wants_fragment
from appliance.console.runs import live
from appliance.errors import NotFound, ShammahError
from appliance.learning.batch import Split, read_frozen
from appliance.learning.canary import Trial, load_trial
from appliance.learning.losses import Losses, read_losses, smoothed
from appliance.learning.progress import RunProgress
from appliance.learning.retry import UNSUCCESSFUL
from appliance.learning.trainer import EXAMPLES, LOG, METRICS
from appliance.store.adapters import AdapterRow
from appliance.store.examples import Example
from appliance.store.runs import Run

PAGE = 20
"""Examples on a page."""
TAIL_BYTES = 16_384
"""So much of the log's end is shown."""
CHAIN = 20
"""So many attempts are looked back at."""


@dataclass(frozen=True)
class Course:
    """The run itself: what changes while it goes on.

    Attributes:
        progress: while it goes on.
        before: the runs that had its examples before, oldest first.
        after: the runs that tried them again.
        adapter: what it made, as the store knows it.
        trial: its canary, if that is on record.
        chart: its losses; None when they are not on disk any more.
        each: steps that one point of the chart stands for.
        ended: it goes on no more.
        retryable: a person may have it tried again.
    """

    run: Run
    progress: RunProgress | None
    before: tuple[Run, ...]
    after: tuple[Run, ...]
    adapter: AdapterRow | None
    trial: Trial | None
    chart: Markup | None
    each: int
    ended: bool
    retryable: bool


@dataclass(frozen=True)
class Given:
    """An example that the run was given.

    Attributes:
        split: what for; None when that is not known any more.
        example: as the store has it now; None when it was deleted.
    """

    id: str
    split: Split | None
    example: Example | None


@dataclass(frozen=True)
class Inputs:
    """A page of what the run was given.

    Attributes:
        number: of the page, from 1.
        more: there is another page.
        frozen: told from the frozen batch; else, as that is gone, from the store.
    """

    given: tuple[Given, ...]
    number: int
    more: bool
    frozen: bool


@dataclass(frozen=True)
class Log:
    """The end of the log, and how large the whole is."""

    text: str
    size: int

    @property
    def cut(self) -> bool:
        """Whether there is more before it."""
        return self.size > TAIL_BYTES


def add_routes(blueprint: Blueprint) -> None:
    """Put `/runs/<run>` on the blueprint."""
    blueprint.add_route(show, "/runs/<run_id:str>", methods=["GET"], name="run")
    blueprint.add_route(follow, "/runs/<run_id:str>/course", methods=["GET"], name="run_course")
    blueprint.add_route(log, "/runs/<run_id:str>/log", methods=["GET"], name="run_log")
    blueprint.add_route(retry, "/runs/<run_id:str>/retry", methods=["POST"], name="retry")


def course(ctx: Any, run_id: str) -> Course:
    """How it goes or went. Asked every second while it goes on; blocking."""
    runs = ctx.store.runs
    run = runs.get(run_id)
    progress = live(ctx, ctx.learning.progress)
    losses = read_losses(ctx.home.runs / run.id / METRICS)
    trial = load_trial(ctx.store.settings)
    return Course(
        run=run,
        progress=progress if progress and progress.id == run.id else None,
        before=_before(ctx, run),
        after=tuple(runs.retries(run.id)) if run.ended else (),
        adapter=ctx.store.adapters.get(run.adapter) if run.adapter else None,
        trial=trial if trial and trial.adapter == run.adapter else None,
        chart=_chart(losses, run.ended is not None) if losses else None,
        each=losses.each if losses else 1,
        ended=run.ended is not None,
        retryable=run.state in UNSUCCESSFUL,
    )


def inputs(ctx: Any, run: Run, wanted: int) -> Inputs:
    """A page of what it was given. Blocking."""
    file, first = ctx.home.runs / run.id / EXAMPLES, (wanted - 1) * PAGE
    if file.is_file():
        found = [
            Given(item.id, item.split, _known(ctx, item.id)) for item in read_frozen(file, PAGE + 1, first)
        ]
    else:
        found = [
            Given(example.id, None, example) for example in ctx.store.examples.of_run(run.id, PAGE + 1, first)
        ]
    return Inputs(tuple(found[:PAGE]), wanted, len(found) > PAGE, file.is_file())


def tail(ctx: Any, run: Run) -> Log | None:
    """The end of its log; None when there is none. Blocking."""
    try:
        with _log(ctx, run).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            text = file.read(TAIL_BYTES)
    except FileNotFoundError:
        return None
    if size > TAIL_BYTES:  # from the next line's beginning
        text = text.partition(b"\n")[2] or text
    return Log(text.decode(errors="replace"), size)


async def show(request: Request, run_id: str) -> HTTPResponse:
    """The page; for a script, what of it changes when the run ends."""
    ctx, wanted = request.app.ctx, page_number(request)

    def gather() -> dict[str, Any]:
        found = course(ctx, run_id)
        return {
            "course": found,
            "run": found.run,
            "inputs": inputs(ctx, found.run, wanted),
            "log": tail(ctx, found.run),
        }

    found = await asyncio.to_thread(gather)
    if wants_fragment(request):
        return html(render("parts/run_account.html", **found))
    return page(request, "run.html", section="runs", **found)


async def follow(request: Request, run_id: str) -> HTTPResponse:
    """How it goes."""
    return html(
        render("parts/run_course.html", course=await asyncio.to_thread(course, request.app.ctx, run_id))
    )


async def log(request: Request, run_id: str) -> Any:  # a stream is a response, but not to the router's types
    """The whole log, to keep."""
    ctx = request.app.ctx
    run = await asyncio.to_thread(ctx.store.runs.get, run_id)
    path = _log(ctx, run)
    if not path.is_file():
        raise NotFound("The log of this run is not on the box any more.")
    return await file_stream(path, mime_type="text/plain; charset=utf-8", filename=f"{run.id}.log")


async def retry(request: Request, run_id: str) -> HTTPResponse:
    """Try its examples again, as far as they wait to be learned."""
    try:
        run = await asyncio.to_thread(request.app.ctx.learning.retry, run_id)
    except ShammahError as error:
        return back(request, error.message, "bad")
    await audit(request, "retry", run=run.id, of=run_id)
    return back(
        request,
        f"Trying {run.examples:,} of its examples again. This page follows the new run.",
        to=f"/runs/{run.id}",
    )


def _chart(losses: Losses, ended: bool) -> Markup:
    lines = [Series("Training", smoothed(losses.training), 1)]
    if losses.heldout or not ended:  # a small batch has none to keep out
        lines.append(Series("Kept out of training", losses.heldout, 2, marks=True))
    return line_chart("Loss", lines, Axis("Step", number), Axis("loss", plain))


def _before(ctx: Any, run: Run) -> tuple[Run, ...]:
    chain: list[Run] = []
    with suppress(NotFound):
        while len(chain) < CHAIN and (earlier := (run.metrics or {}).get("retry_of")):
            run = ctx.store.runs.get(earlier)
            chain.append(run)
    return tuple(reversed(chain))


def _known(ctx: Any, example_id: str) -> Example | None:
    try:
        example: Example = ctx.store.examples.get(example_id)
    except NotFound:
        return None
    return example


def _log(ctx: Any, run: Run) -> Path:
    directory: Path = ctx.home.runs / run.id
    return directory / LOG
