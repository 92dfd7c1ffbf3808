"""Models: what is installed, how good and fast it is on this box; import, measure, switch, delete."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sanic import Blueprint, HTTPResponse, Request

from appliance.console.actions import OWNER, audit
from appliance.console.render import back, form_field, page
from appliance.errors import BundleError, Conflict, InvalidRequest, ShammahError
from appliance.learning.figures import Figures, read_figures
from appliance.learning.jobs import Job
from appliance.model.bundle import MANIFEST, NAME, Bundle, Manifest, load_bundle
from appliance.model.importer import delete_bundle
from appliance.model.source import DEFAULT, DEFAULT_NAME
from appliance.served import Fallback, dismiss, read_served
from appliance.settings.form import Key

MAX_SOURCE = 1000


@dataclass(frozen=True)
class Installed:
    """A directory under `models/`.

    Attributes:
        manifest: None when the bundle is broken.
        problem: what is wrong with it then.
        size: bytes on disk.
        parameters: weights that it has.
        figures: measured on this box.
        adapters: how many fit it.
        in_service: it answers now.
        next: it is what the next start serves.
    """

    name: str
    manifest: Manifest | None
    problem: str
    size: int
    parameters: int
    figures: Figures | None
    adapters: int
    in_service: bool
    next: bool


@dataclass(frozen=True)
class Models:
    """The page.

    Attributes:
        installed: the one in service first, then by name.
        best: of what was measured, by figure, the best value; to draw the others beside.
        free: bytes that the disk has left.
        job: an import or a measurement, going on or just ended.
        waiting: settings that a restart would change.
        fallback: a model that could not be served.
        has_default: the default model is installed.
        aside: adapters that fit none of the models here.
    """

    installed: tuple[Installed, ...]
    best: dict[str, float]
    free: int
    job: Job | None
    waiting: tuple[Key, ...]
    fallback: Fallback | None
    has_default: bool
    aside: int


def add_routes(blueprint: Blueprint) -> None:
    """Put `/models` on the blueprint."""
    blueprint.add_route(show, "/models", methods=["GET"], name="models")
    for act in (import_, measure, cancel, switch, delete):
        path = f"/models/{act.__name__.rstrip('_')}"
        blueprint.add_route(act, path, methods=["POST"], name=f"models_{act.__name__.rstrip('_')}")
    blueprint.add_route(dismiss_job, "/models/dismiss", methods=["POST"], name="models_dismiss")


def models(ctx: Any) -> Models:
    """What the page shows. Blocking."""
    home, serving = ctx.home, ctx.bundle.manifest.name
    file = ctx.settings.page().file
    wanted = serving if file.config is None else file.config.model.name
    counts = ctx.store.adapters.count_by_base()
    found = [
        _look_at(path, counts, serving, wanted) for path in sorted(home.models.iterdir()) if _is_model(path)
    ]
    found.sort(key=lambda model: not model.in_service)
    bases = {model.manifest.base_hash for model in found if model.manifest}
    return Models(
        installed=tuple(found),
        best=_best([model.figures for model in found if model.figures]),
        free=shutil.disk_usage(home.models).free,
        job=ctx.jobs.job,
        waiting=ctx.restart.waiting(),
        fallback=read_served(home).fallback,
        has_default=any(model.name == DEFAULT_NAME for model in found),
        aside=sum(count for base, count in counts.items() if base not in bases),
    )


async def show(request: Request) -> HTTPResponse:
    """The page."""
    found = await asyncio.to_thread(models, request.app.ctx)
    return page(request, "models.html", section="models", models=found)


async def import_(request: Request) -> HTTPResponse:
    """Begin to import a model."""
    kind, name = form_field(request, "kind"), form_field(request, "name")
    source = DEFAULT if kind == "default" else form_field(request, "source")
    try:
        if not source:
            raise InvalidRequest(
                "Say which model: a hub id like HuggingFaceTB/SmolLM2-360M-Instruct, or a path."
            )
        if len(source) > MAX_SOURCE or not source.isprintable():
            raise InvalidRequest("That is no name of a model.")
        if name and not NAME.fullmatch(name):
            raise InvalidRequest("A model's name has letters, digits, dot, dash and underscore, 128 at most.")
        await asyncio.to_thread(request.app.ctx.jobs.import_model, source, name)
    except ShammahError as error:
        return back(request, error.message, "bad", "/models")
    await audit(request, "model.import", source=source, name=name or None)
    return back(request, f"Importing {source}. You can leave this page: it goes on.", "info", "/models")


async def measure(request: Request) -> HTTPResponse:
    """Begin to measure a model."""
    name = form_field(request, "name")
    try:
        await asyncio.to_thread(_bundle, request.app.ctx, name)
        await asyncio.to_thread(request.app.ctx.jobs.measure, name)
    except ShammahError as error:
        return back(request, error.message, "bad", "/models")
    await audit(request, "model.measure", model=name)
    return back(
        request, f"Measuring {name}. It takes a minute or so; requests come first.", "info", "/models"
    )


async def cancel(request: Request) -> HTTPResponse:
    """End the job that is going on."""
    try:
        await asyncio.to_thread(request.app.ctx.jobs.cancel)
    except ShammahError as error:
        return back(request, error.message, "bad", "/models")
    await audit(request, "model.cancel")
    return back(request, "It is being cancelled.", to="/models")


async def dismiss_job(request: Request) -> HTTPResponse:
    """Put away what is said of the last job, or of a model that failed."""
    ctx = request.app.ctx
    if form_field(request, "what") == "fallback":
        await asyncio.to_thread(dismiss, ctx.home)
    else:
        await asyncio.to_thread(ctx.jobs.dismiss)
    return back(request, to="/models")


async def switch(request: Request) -> HTTPResponse:
    """Have the next start serve a model."""
    ctx, name = request.app.ctx, form_field(request, "name")

    def save() -> None:
        _bundle(ctx, name)
        ctx.settings.save({"model.name": name}, ctx.settings.page().file.etag, OWNER)

    try:
        await asyncio.to_thread(save)
    except ShammahError as error:
        return back(request, error.message, "bad", "/models")
    await audit(request, "model.switch", model=name)
    if name == ctx.bundle.manifest.name:
        return back(request, f"{name} stays in service.", to="/models")
    return back(request, f"{name} serves from the next start.", to="/models")


async def delete(request: Request) -> HTTPResponse:
    """Delete a model that is not needed."""
    ctx, name = request.app.ctx, form_field(request, "name")

    def remove() -> int:
        found = next((model for model in models(ctx).installed if model.name == name), None)
        if found is None:
            raise BundleError(f"There is no model {name!r} on this box.")
        if found.in_service:
            raise Conflict(f"{name} is in service: switch to another model first.")
        if found.next:
            raise Conflict(f"{name} is to serve from the next start: switch to another model first.")
        if ctx.jobs.job is not None and ctx.jobs.job.going_on:
            raise Conflict(f"{ctx.jobs.job.subject} is being worked on: wait until that has ended.")
        delete_bundle(ctx.home, name)
        return found.size

    try:
        freed = await asyncio.to_thread(remove)
    except ShammahError as error:
        return back(request, error.message, "bad", "/models")
    await audit(request, "model.delete", model=name, freed=freed)
    ctx.events.publish("model.deleted", model=name)
    return back(request, f"{name} is deleted: {freed / 1e6:,.0f} MB are free again.", to="/models")


def _bundle(ctx: Any, name: str) -> Bundle:
    if not NAME.fullmatch(name):
        raise BundleError(f"There is no model {name!r} on this box.")
    return load_bundle(ctx.home.models / name)


def _is_model(path: Path) -> bool:
    return NAME.fullmatch(path.name) is not None and path.is_dir()


def _look_at(path: Path, counts: dict[str, int], serving: str, wanted: str) -> Installed:
    name, manifest, problem, figures, parameters, adapters = path.name, None, "", None, 0, 0
    try:
        bundle = load_bundle(path)
        if bundle.manifest.name != name:
            raise BundleError(f"Its {MANIFEST} is that of {bundle.manifest.name}.")
        manifest, figures, parameters = bundle.manifest, read_figures(bundle), parameters_of(bundle)
        adapters = counts.get(manifest.base_hash, 0)
    except BundleError as error:
        problem = error.message
    size = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    return Installed(
        name, manifest, problem, size, parameters, figures, adapters, name == serving, name == wanted
    )


def parameters_of(bundle: Bundle) -> int:
    """How many weights a model has, but for the few that scale and shift."""
    manifest = bundle.manifest
    try:
        config = json.loads((bundle.path / "config.json").read_text(encoding="utf-8"))
        tied = bool(config.get("tie_word_embeddings", False))
    except (OSError, ValueError, AttributeError):
        tied = True
    words = manifest.vocab_size * manifest.hidden
    return words * (1 if tied else 2) + sum(port.inputs * port.outputs for port in manifest.ports)


def _best(measured: list[Figures]) -> dict[str, float]:
    if not measured:
        return {}
    return {
        "prefill": max(figures.prefill for figures in measured),
        "decode": max(figures.decode for figures in measured),
        "first_token": min(figures.first_token for figures in measured),
        "bits": min(figures.bits for figures in measured),
    }
