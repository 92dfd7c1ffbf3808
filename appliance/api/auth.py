"""Who is calling: the owner, a device with a key, or somebody on this machine.

Keys are asked for everywhere but on loopback. There any key will do, since OpenAI's clients insist
on sending one, except a device's key that was revoked or never existed.
"""

from __future__ import annotations

import asyncio
import hmac
from typing import cast

from sanic import HTTPResponse, Request

from appliance.errors import Forbidden, NotSetUp, RateLimited, Unauthorized
from appliance.network.request import BoxRequest
from appliance.origin import same_origin, trusted_loopback
from appliance.store.keys import PREFIX, Device
from appliance.store.owner import password_set, session_token, session_valid


async def only_this_machine(request: Request) -> None:
    """App-wide request middleware: until there is an owner, nobody else on the network is served anything.

    As soon as a password is set, here or by the command, everybody is let through to the checks beyond.

    Raises:
        NotSetUp: it comes from elsewhere, and nobody has set a password yet.
    """
    ctx = request.app.ctx
    assert isinstance(request, BoxRequest)
    if ctx.set_up or request.unreadable or on_this_machine(request):
        return
    # A password is never taken away again: it is not looked for any more once it was there.
    ctx.set_up = await asyncio.to_thread(password_set, ctx.store)
    if not ctx.set_up:
        raise NotSetUp


async def identify(request: Request) -> HTTPResponse | None:
    """Request middleware: sets `request.ctx.device`, `request.ctx.owner` and `request.ctx.caller`.

    Raises:
        Unauthorized: no credentials where they are needed, or wrong ones.
        RateLimited: the device asks more often than it may.
    """
    if getattr(request.ctx, "identified", False):
        return None
    request.ctx.identified = True
    request.ctx.device = None
    request.ctx.owner = False
    if _is_local_command(request):
        request.ctx.owner, request.ctx.caller = True, "owner"
        return None
    token = _bearer(request)
    if token is not None and token.startswith(PREFIX):
        request.ctx.device = await asyncio.to_thread(request.app.ctx.store.keys.verify, token)
        if request.ctx.device is None:
            raise Unauthorized("This API key is not known here or was revoked. The owner can create another.")
        request.ctx.caller = "device"
        _limit(request, request.ctx.device)
        return None
    # A web page of another site must not use the owner's browser to reach a keyless box.
    own_page = same_origin("POST", request.headers, request.host) or not _from_browser(request)
    request.ctx.owner = own_page and await _is_owner(request)
    if request.ctx.owner or (own_page and trusted_loopback(request.ip, request.headers)):
        request.ctx.caller = "owner" if request.ctx.owner else "keyless"
        return None
    if token is None:
        raise Unauthorized("An API key is needed: send `Authorization: Bearer sk-shammah-…`.")
    raise Unauthorized("This is not a key of this box. The owner can create one.")


async def admit_to_figures(request: Request) -> None:
    """Let through whom `[server] metrics` allows.

    Raises:
        Unauthorized: it needs a key, or the key is wrong.
        Forbidden: a key is not enough.
    """
    allowed = request.app.ctx.config.server.metrics
    if allowed == "open":
        return
    await identify(request)
    if allowed == "local" and not (request.ctx.owner or on_this_machine(request)):
        raise Forbidden("Only this machine and the owner may read the figures (see server.metrics).")


def on_this_machine(request: Request) -> bool:
    """Whether it comes from a person or a program on this machine."""
    return _is_local_command(request) or trusted_loopback(request.ip, request.headers)


def device_of(request: Request) -> Device | None:
    """The device that asks, None on keyless loopback."""
    return cast("Device | None", request.ctx.device)


def require_owner(request: Request) -> None:
    """Let only the owner through.

    Raises:
        Forbidden: somebody else is asking.
    """
    if not request.ctx.owner:
        raise Forbidden("Only the owner may do this: log in to the console, or use the command on the box.")


def _limit(request: Request, device: Device) -> None:
    """Looking something up costs nothing; what has the box think or write does."""
    if request.method == "POST":
        try:
            default = request.app.ctx.config.server.device_requests_per_minute
            request.app.ctx.limits.take(device, default=default)
            request.ctx.counted = True
        except RateLimited:
            request.app.ctx.meter.refused(device)
            raise


async def _is_owner(request: Request) -> bool:
    store = request.app.ctx.store
    if await asyncio.to_thread(password_set, store):
        cookie = session_token(request.cookies)
        return await asyncio.to_thread(session_valid, store, cookie)
    return trusted_loopback(request.ip, request.headers)


def _is_local_command(request: Request) -> bool:
    """Whether it knows the token that lies in the home: that is the `shammah` command beside the daemon."""
    token, local = _bearer(request), request.app.ctx.local_token
    return token is not None and hmac.compare_digest(token.encode(errors="replace"), local.encode())


def _from_browser(request: Request) -> bool:
    return "sec-fetch-site" in request.headers or "origin" in request.headers


def _bearer(request: Request) -> str | None:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None
