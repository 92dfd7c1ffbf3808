"""The names a request may give as its model, and the weights they stand for.

`shammah` and the bundle's own name are what is in service; `shammah:base` and `shammah:<adapter>` are
particular weights, so that one adapter can be tried beside another without switching anything.

A device may be kept to some of these. Then `shammah` stands for all names of what is in service.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from sanic import Request

from appliance.api.auth import device_of
from appliance.api.builds import Builds
from appliance.engine.session import Session, weights_of
from appliance.errors import AdapterInvalid, Forbidden, NotFound

ALIAS = "shammah"
"""The model's name for clients that should not care which model the box runs."""
_PARTICULAR = f"{ALIAS}:"
BASE = f"{_PARTICULAR}base"
CURRENT = f"{_PARTICULAR}current"
BASE_WEIGHTS = weights_of(None)


def in_service(request: Request, model: str) -> bool:
    """Whether a name stands for what is in service, whatever that is."""
    return model in (ALIAS, CURRENT, request.app.ctx.bundle.manifest.name)


def particular(adapter: str) -> str:
    """The name that means this adapter, in service or not."""
    return f"{_PARTICULAR}{adapter}"


def adapter_name(model: str) -> str:
    """The adapter that such a name means; empty for another name."""
    return model.removeprefix(_PARTICULAR) if model.startswith(_PARTICULAR) else ""


async def served_names(request: Request) -> list[str]:
    """The names a request may use, those that always mean what is in service first."""
    adapters = await asyncio.to_thread(_that_answer, request.app.ctx)
    own = request.app.ctx.bundle.manifest.name
    names = [ALIAS, own, BASE, *map(particular, adapters)]
    return [name for name in names if _allowed(request, name)]


def adapter_of(request: Request, model: str) -> str | None:
    """The adapter behind a name that is served; None for base."""
    if in_service(request, model):
        adapter: str | None = request.app.ctx.engine.adapter
        return adapter
    return None if model == BASE else model.removeprefix(_PARTICULAR)


async def find_weights(request: Request, model: str, conversation: str) -> Session | None:
    """The weights that shall answer; None for what is in service.

    Args:
        request: the HTTP request.
        model: the name it gives.
        conversation: the same for all turns of one, so that a canary does not change sides within it.

    Raises:
        Forbidden: the device may not use these; the message names what it may.
        NotFound: nothing is called that; the message names what is.
        AdapterInvalid: the adapter's file is damaged or fits another base.
        RateLimited: the client has named too many that had to be built.
        Busy: too many others are being built.
        Unavailable: no session can be built with it.
    """
    ctx = request.app.ctx
    device = device_of(request)
    client = None if request.ctx.owner else device.id if device else request.ip
    if not _allowed(request, model):
        raise Forbidden(
            f"The key of this device is not for the model {model!r}, but for {await _some_names(request)}. "
            "The owner can change that.",
            param="model",
            code="model_not_allowed",
        )
    if in_service(request, model):
        challenger: Session | None = ctx.learning.canary.weights_for(conversation)
        return challenger
    if model == BASE:
        return await base_weights(ctx, client)
    name = adapter_name(model)  # an empty one is nobody's
    try:
        return await adapter_weights(ctx, name, client)
    except NotFound as error:
        names = await _some_names(request)
        raise NotFound(
            f"The model {model!r} does not exist here. Use {names}; /v1/models lists all.",
            param="model",
            code="model_not_found",
        ) from error


async def base_weights(ctx: Any, client: str | None = None) -> Session:
    """The weights without an adapter; see `adapter_weights`."""
    ready: Session | None = ctx.engine.at_hand(BASE_WEIGHTS)
    if ready is not None:
        return ready
    builds: Builds = ctx.builds
    return await builds.get(client, BASE_WEIGHTS, lambda: ctx.engine.prepare(None))


async def adapter_weights(ctx: Any, name: str, client: str | None = None) -> Session:
    """The weights of an adapter, whether it is in service or not.

    Args:
        ctx: the app's.
        name: of the adapter.
        client: who asks; None for the owner.

    Raises:
        NotFound: there is none of that name, or it learned from what has been forgotten.
        AdapterInvalid: its file is damaged or fits another base.
        RateLimited: the client has named too many that had to be built.
        Busy: too many others are being built.
        Unavailable: no session can be built with it.
    """
    weights = await asyncio.to_thread(_identity, ctx, name)
    ready: Session | None = ctx.engine.at_hand(weights)
    if ready is not None:
        return ready

    async def build() -> Session:
        built: Session = await ctx.engine.prepare(await asyncio.to_thread(ctx.registry.load, name))
        return built

    builds: Builds = ctx.builds
    return await builds.get(client, weights, build)


def _identity(ctx: Any, name: str) -> str:
    """What identifies an adapter's weights, and that they can be loaded. Blocking.

    Raises:
        NotFound: there is none of that name, or it learned from what has been forgotten.
        AdapterInvalid: its file is damaged or fits another base.
    """
    weights: str = ctx.registry.identity(name)
    if ctx.store.adapters.barred(weights):
        raise NotFound(f"{name} learned from what has been forgotten.", param="name")
    return weights


def _that_answer(ctx: Any) -> list[str]:
    """The adapters that a request may name with success, newest first. Blocking."""
    found = []
    for name in ctx.registry.list():
        with suppress(NotFound, AdapterInvalid):
            _identity(ctx, name)
            found.append(name)
    return found


def _allowed(request: Request, model: str) -> bool:
    device = device_of(request)
    if device is None or device.models is None:
        return True
    return (ALIAS if in_service(request, model) else model) in device.models


async def _some_names(request: Request) -> str:
    names = (await served_names(request))[:4]
    return " or ".join(map(repr, names)) or "none that is still here"
