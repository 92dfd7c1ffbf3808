"""Devices: who may ask, how much each does, and keys for new ones."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from sanic import Blueprint, HTTPResponse, Request

from appliance.console.actions import audit
from appliance.console.render import form_field, page
from appliance.console.snippets import key_usage
from appliance.errors import Conflict, ShammahError
from appliance.store.keys import NAME_LIMIT, Device
from appliance.store.usage import DAY, HOUR, KEYLESS, UsagePoint, floor

THIS_MACHINE = "this-machine"
"""In addresses, what was asked without a key. The ids of devices begin otherwise."""
DAYS = 30
REVOKED_SHOWN = 100


@dataclass(frozen=True)
class DeviceLine:
    """A row of the list.

    Attributes:
        device: None for what came without a key.
        path: of its own page.
        day: what it asked in the last 24 hours.
        month: in the last 30 days.
    """

    device: Device | None
    path: str
    day: UsagePoint
    month: UsagePoint


@dataclass(frozen=True)
class Devices:
    """The list.

    Attributes:
        active: those with a key, oldest first.
        this_machine: what was asked on the box itself.
        revoked: the newest of those without, newest first.
        hidden: how many more of these there are.
    """

    active: tuple[DeviceLine, ...]
    this_machine: DeviceLine
    revoked: tuple[DeviceLine, ...]
    hidden: int


def add_routes(blueprint: Blueprint) -> None:
    """Put `/devices` on the blueprint."""
    blueprint.add_route(show, "/devices", methods=["GET"], name="devices")
    blueprint.add_route(create, "/devices", methods=["POST"], name="create_device")


def devices(ctx: Any) -> Devices:
    """All devices, and how much each has asked. Blocking."""
    ctx.meter.flush()
    day, month = (ctx.store.usage.totals(since) for since in beginnings())

    def line(device: Device | None) -> DeviceLine:
        ident = KEYLESS if device is None else device.id
        nothing = UsagePoint(0)
        path = f"/devices/{device.id if device else THIS_MACHINE}"
        return DeviceLine(device, path, day.get(ident, nothing), month.get(ident, nothing))

    known = ctx.store.keys.list()
    revoked = [device for device in reversed(known) if device.revoked]
    return Devices(
        active=tuple(line(device) for device in known if not device.revoked),
        this_machine=line(None),
        revoked=tuple(map(line, revoked[:REVOKED_SHOWN])),
        hidden=max(0, len(revoked) - REVOKED_SHOWN),
    )


def beginnings() -> tuple[int, int]:
    """When the last 24 hours and the last 30 days began: both count what is under way as whole."""
    now = time.time()
    return floor(now, HOUR) - 23 * HOUR, floor(now, DAY) - (DAYS - 1) * DAY


async def show(request: Request) -> HTTPResponse:
    """The list, and the form for a new key."""
    return await _page(request)


async def create(request: Request) -> HTTPResponse:
    """Make a key and show it, this once.

    The page with the key answers the form itself: a redirect would have to keep the key somewhere. When
    that page is reloaded the name is taken, so that no second key comes of it.
    """
    name, collect = form_field(request, "name"), bool(form_field(request, "collect"))
    try:
        device, secret = await asyncio.to_thread(request.app.ctx.store.keys.create, name, collect)
    except ShammahError as error:
        again = " If you have just reloaded the page with its key: a key is shown only once."
        problem = error.message + (again if isinstance(error, Conflict) else "")
        return await _page(request, error.status, problem=problem, name=name, collect=collect)
    await audit(request, "key.created", device=device.id, name=device.name, collect=collect)
    return page(
        request,
        "device_key.html",
        section="devices",
        device=device,
        **key_usage(request, secret),
    )


async def _page(
    request: Request, status: int = 200, *, problem: str = "", name: str = "", collect: bool = True
) -> HTTPResponse:
    found = await asyncio.to_thread(devices, request.app.ctx)
    return page(
        request,
        "devices.html",
        status=status,
        section="devices",
        devices=found,
        problem=problem,
        name=name,
        collect=collect,
        name_limit=NAME_LIMIT,
    )
