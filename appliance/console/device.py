"""One device: what it asked over time, what it may do, shutting it out, and forgetting what it said."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, tzinfo
from typing import Any

from markupsafe import Markup
from sanic import Blueprint, HTTPResponse, Request

from appliance.api.weights import ALIAS, BASE, adapter_name, particular
from appliance.console.actions import OWNER, audit
from appliance.console.charts import Axis, bar_chart, plain
from appliance.console.devices import DAYS as MONTH
from appliance.console.devices import THIS_MACHINE, beginnings
from appliance.console.render import (
    adapter_title,
    back,
    form_field,
    number,
    page,
    viewer_zone,
    when,
    when_day,
)
from appliance.errors import InvalidRequest, NotFound, ShammahError
from appliance.learning.forget import Forgotten, Wish
from appliance.store.filter import Filter
from appliance.store.keys import MAX_RATE, NAME_LIMIT, Device
from appliance.store.usage import HOUR, KEYLESS, UsagePoint

ADAPTERS_SHOWN = 30
FLUSH_SECONDS = 2.0
HOURS = Axis("Hour", lambda at: when(at, "short"))


@dataclass(frozen=True)
class Model:
    """A model that a device may be allowed: the API's name, and what it is to a person."""

    name: str
    title: Markup | str
    hint: str = ""


@dataclass(frozen=True)
class Terms:
    """What the owner says about a device; `rate` is as typed, to be shown again when it cannot be."""

    name: str
    collect: bool
    teach: bool
    rate: str
    models: tuple[str, ...] | None


@dataclass(frozen=True)
class DeviceView:
    """What the page shows.

    Attributes:
        device: None for what came without a key.
        examples: how many examples are from it.
        day: what it asked in the last 24 hours, all together.
        month: in the last 30 days.
        charts: of these.
        models: what it could be allowed.
    """

    device: Device | None
    examples: int
    day: UsagePoint
    month: UsagePoint
    charts: tuple[Markup, ...]
    models: tuple[Model, ...]


def add_routes(blueprint: Blueprint) -> None:
    """Put `/devices/<device_id>` on the blueprint."""
    path = "/devices/<device_id:str>"
    blueprint.add_route(show, path, methods=["GET"], name="device")
    blueprint.add_route(save, path, methods=["POST"], name="save_device")
    blueprint.add_route(revoke, f"{path}/revoke", methods=["POST"], name="revoke_device")
    blueprint.add_route(forget, f"{path}/forget", methods=["POST"], name="forget_device")


def view(ctx: Any, device_id: str, zone: tzinfo | None = None) -> DeviceView:
    """Gather what the page shows, with days as they are in the viewer's zone. Blocking.

    Raises:
        NotFound: there is no such device.
    """
    device = None if device_id == THIS_MACHINE else ctx.store.keys.get(device_id)
    ident = KEYLESS if device is None else device.id
    ctx.meter.flush()
    usage, (day, _) = ctx.store.usage, beginnings()
    hourly, daily = usage.series(day, HOUR, ident), usage.days(MONTH, zone or UTC, ident)
    days = Axis("Day" if zone else "Day (UTC)", lambda at: when_day(at, zone))
    return DeviceView(
        device=device,
        examples=ctx.store.browse.count(Filter(device=ident)).count,
        day=sum(hourly, UsagePoint(day)),
        month=sum(daily, UsagePoint(daily[0].at)),
        charts=(*_charts("hour", hourly, HOURS), *_charts("day", daily, days)),
        models=() if device is None else _models(ctx, device),
    )


async def show(request: Request, device_id: str) -> HTTPResponse:
    """The page."""
    return await _page(request, device_id)


async def save(request: Request, device_id: str) -> HTTPResponse:
    """Name a device and say what it may do."""
    keys = request.app.ctx.store.keys
    terms = _typed(request)
    before = await asyncio.to_thread(keys.get, device_id)
    try:
        after = await asyncio.to_thread(
            keys.change,
            device_id,
            name=terms.name,
            collect=terms.collect,
            models=terms.models,
            rate=_rate(terms.rate),
            teach=terms.teach,
        )
    except ShammahError as error:
        return await _page(request, device_id, error.status, problem=error, terms=terms)
    fields = ("name", "collect", "teach", "rate", "models")
    changed = {
        name: [getattr(before, name), getattr(after, name)]
        for name in fields
        if getattr(before, name) != getattr(after, name)
    }
    if not changed:
        return back(request, "Nothing was changed.", "info", _path(device_id))
    await audit(request, "key.changed", device=device_id, name=after.name, changed=changed)
    return back(request, "Saved. It holds from the next request on.", to=_path(device_id))


async def revoke(request: Request, device_id: str) -> HTTPResponse:
    """End a device's key."""
    keys = request.app.ctx.store.keys
    device = await asyncio.to_thread(keys.get, device_id)
    if device.revoked:
        return back(request, "This key was revoked before.", "info", _path(device_id))
    await asyncio.to_thread(keys.revoke, device_id)
    await audit(request, "key.revoked", device=device_id, name=device.name)
    return back(request, f"The key of {device.name} is revoked: it is refused from now on.", to="/devices")


async def forget(request: Request, device_id: str) -> HTTPResponse:
    """Forget all that a device said; it may go on asking."""
    ctx = request.app.ctx
    retrain = bool(form_field(request, "retrain"))
    try:
        device = await asyncio.to_thread(ctx.store.keys.get, device_id)
        if ctx.collector.paused is None:  # what was answered a moment ago is forgotten too
            await asyncio.to_thread(ctx.collector.flush, FLUSH_SECONDS)
        done = await ctx.learning.forget(Wish(device=device.id, retrain=retrain), OWNER)
    except NotFound:
        raise
    except ShammahError as error:
        return back(request, error.message, "bad", _path(device_id))
    return back(request, _forgotten(done), to=_path(device_id))


async def _page(
    request: Request,
    device_id: str,
    status: int = 200,
    *,
    problem: ShammahError | None = None,
    terms: Terms | None = None,
) -> HTTPResponse:
    found = await asyncio.to_thread(view, request.app.ctx, device_id, viewer_zone(request))
    return page(
        request,
        "device.html",
        status=status,
        section="devices",
        view=found,
        terms=terms or (found.device and _terms(found.device)),
        problem=problem.message if problem else "",
        param=problem.param if problem else "",
        name_limit=NAME_LIMIT,
        max_rate=MAX_RATE,
        usual_rate=request.app.ctx.config.server.device_requests_per_minute,
    )


def _path(device_id: str) -> str:
    return f"/devices/{device_id}"


def _charts(span: str, points: list[UsagePoint], x: Axis) -> tuple[Markup, Markup]:
    def chart(title: str, heights: list[int], tone: int) -> Markup:
        bars = [(point.at, float(height)) for point, height in zip(points, heights, strict=True)]
        return bar_chart(title, bars, x, Axis(title, plain, whole=True), tone=tone)

    return (
        chart(f"Requests by the {span}", [point.requests for point in points], 1),
        chart(f"Tokens by the {span}", [point.tokens for point in points], 2),
    )


def _models(ctx: Any, device: Device) -> tuple[Model, ...]:
    """What it could be allowed: what it is allowed already, even if that is gone, and the newest adapters."""
    there = ctx.registry.list()
    names = list(map(particular, there[:ADAPTERS_SHOWN]))
    names += [name for name in device.models or () if name not in (ALIAS, BASE, *names)]
    known = set(map(particular, there))

    def model(name: str) -> Model:
        adapter = adapter_name(name)
        return Model(
            name, adapter_title(adapter), adapter if name in known else f"{adapter}: not here any more"
        )

    return (
        Model(ALIAS, "What is in service", "whatever that is at the time"),
        Model(BASE, "The base model", "as it came, before anything was learned"),
        *map(model, names),
    )


def _terms(device: Device) -> Terms:
    return Terms(device.name, device.collect, device.teach, str(device.rate or ""), device.models)


def _typed(request: Request) -> Terms:
    chosen = request.form.getlist("models", []) if request.form else []
    return Terms(
        name=form_field(request, "name"),
        collect=bool(form_field(request, "collect")),
        teach=bool(form_field(request, "teach")),
        rate=form_field(request, "rate"),
        models=tuple(chosen) if form_field(request, "which") == "some" else None,
    )


def _rate(typed: str) -> int | None:
    if not typed:
        return None
    if not (typed.isascii() and typed.isdigit() and len(typed) < 10):
        raise InvalidRequest(f"Write a whole number from 1 to {MAX_RATE}, or nothing.", param="rate")
    return int(typed)


def _count(count: int, what: str) -> str:
    return f"{number(count)} {what}" if count == 1 else f"{number(count)} {what}s"


def _forgotten(done: Forgotten) -> str:
    said = (
        f"Forgotten: {_count(len(done.examples), 'example')} and {_count(done.completions, 'stored answer')}."
    )
    if not done.adapters:
        return said
    which = ", ".join(done.adapters[:3]) + (" and others" if len(done.adapters) > 3 else "")
    if done.retrained:
        return f"{said} What had learned from them is given up: {which}."
    return f"{said} {which} learned from them before; to give that up too, tick the box and do it again."
