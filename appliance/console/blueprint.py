"""The console's blueprint: its routes, who may use them, and what every answer carries."""

from __future__ import annotations

import asyncio
import gzip
import logging
import time
from typing import Any

from sanic import Blueprint, HTTPResponse, Request, Sanic
from sanic.exceptions import NotFound, PayloadTooLarge, SanicException
from sanic.response import html, raw, text

from appliance.api.base_url import Misplaced, for_a_person
from appliance.api.blueprints import is_large
from appliance.api.errors import respond
from appliance.console import (
    account,
    adapter,
    adapters,
    audit,
    backup,
    chosen,
    compare,
    device,
    devices,
    doctor,
    example,
    first_run,
    home,
    live,
    login,
    logs,
    models,
    parts,
    playground,
    queue,
    restart,
    review,
    run,
    runs,
    settings,
    settings_history,
    settings_text,
    transfer,
    trust,
)
from appliance.console.assets import load_assets
from appliance.console.render import (
    HEADERS,
    back,
    environment,
    login_path,
    page,
    page_before,
    render,
    wants_fragment,
)
from appliance.console.shown import LARGEST, PREFIX, shown
from appliance.errors import InvalidRequest, NotSetUp, ShammahError
from appliance.origin import same_origin, trusted_loopback
from appliance.store.owner import password_set, session_token, session_valid

log = logging.getLogger(__name__)
PACKED_FROM = 1000
"""Bytes. Below, packing saves no packet on the network."""
blueprint = Blueprint("console")


def setup(app: Sanic[Any, Any]) -> None:
    """Register the console on the app. Templates and assets are read now: a broken install shows at once."""
    environment().get_template("home.html")
    load_assets()
    app.blueprint(blueprint)
    app.error_handler.add(NotFound, lost)
    app.add_signal(_refuse_large, "http.routing.after")


async def admit(request: Request) -> HTTPResponse | None:
    """Let the owner in; send everybody else to the login, or say how to set a password."""
    if not same_origin(request.method, request.headers, request.host):
        return page(
            request,
            "error.html",
            status=403,
            title="Refused",
            message="This request came from another site, or from a program that did not say where from. "
            "Nothing was done.",
        )
    store = request.app.ctx.store
    token = session_token(request.cookies)
    request.ctx.seen = request.app.ctx.events.count  # before anything is read: what changes later is told

    def look() -> tuple[bool, bool, int]:
        protected = password_set(store)
        return protected, protected and session_valid(store, token), store.examples.review_count()

    protected, request.ctx.logged_in, request.ctx.review_count = await asyncio.to_thread(look)
    request.ctx.password_set = protected
    request.ctx.open_to_this_machine = not protected and trusted_loopback(request.ip, request.headers)
    if request.ctx.logged_in or request.ctx.open_to_this_machine:
        return None
    if _public(request):
        return None
    if wants_fragment(request):
        return text("Your session has ended.", status=401)  # the page asks for the password in place
    if not protected:
        return page(
            request,
            "error.html",
            status=403,
            title="Set a password first",
            message="Until the owner has set a password, this console answers only on the machine it runs "
            "on, and to who opens the setup link from its log. Or run there: shammah console password",
        )
    if request.method in ("GET", "HEAD"):
        query = f"?{request.query_string}" if request.query_string else ""
        return back(request, to=login_path(f"{request.path}{query}"))
    return login.interrupted(request)


async def _refuse_large(request: Request, **_: Any) -> None:
    """Read no large body of somebody who is not logged in.

    Such a form has a token and two passwords, no more: taking apart millions of fields would hold up
    everybody's answers.
    """
    if request.method in ("GET", "HEAD") or request.path.startswith("/v1/") or not is_large(request):
        return
    store, token = request.app.ctx.store, session_token(request.cookies)

    def owner() -> bool:
        if password_set(store):
            return session_valid(store, token)
        return trusted_loopback(request.ip, request.headers)

    if not await asyncio.to_thread(owner):
        raise InvalidRequest(
            "That form is too large for somebody who is not logged in. Nothing was done: log in, go back to "
            "the page, and send it again."
        )


def lead_on(request: Request, response: HTTPResponse) -> None:
    """Lead a browser from the answer to a form on to an address of the answer's own, see `shown.py`."""
    known = vars(request.ctx)
    admitted = known.get("logged_in") or known.get("open_to_this_machine")
    navigates = request.method == "POST" and request.headers.get("sec-fetch-mode") == "navigate"
    if not (admitted and navigates and _is_page(response)) or known.get("once"):
        return
    body = response.body
    if body and len(body) <= LARGEST:
        response.headers["Location"] = shown.keep(body.decode(), response.status, page_before(request))
        response.status, response.body = 303, b""


async def answer(request: Request, token: str) -> HTTPResponse:
    """The answer to a form, again."""
    found = shown.get(token)
    if found is None:
        return page(
            request,
            "error.html",
            status=404,
            title="This page is not kept any more",
            message="It was the answer to a form. Open the page of the form again.",
        )
    return html(found.body, status=found.status)


async def harden(request: Request, response: HTTPResponse) -> None:
    """Put the security headers on everything; nothing but assets may be kept by a cache.

    Pages are packed, and say how long they took (`Server-Timing`, which browsers show to who looks).
    """
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers.setdefault("Cache-Control", "no-store")
    lead_on(request, response)
    pack(request, response)
    began = getattr(request.ctx, "began", None)
    if began is not None:
        spent = 1000 * (time.perf_counter() - began)
        response.headers["Server-Timing"] = f"total;dur={spent:.1f}"


def pack(request: Request, response: HTTPResponse) -> None:
    """Compress a page for a browser that can read it so: its text is five to ten times smaller then.

    No page has a secret in it that a stranger could find out by the size of what he made it contain: the
    session is in a cookie, and forms carry no token.
    """
    if not _is_page(response):
        return  # a file that is sent as it is read has no body to look at
    body = response.body
    if not body or len(body) < PACKED_FROM or "content-encoding" in response.headers:
        return
    response.headers["Vary"] = "Accept-Encoding"
    if "gzip" in request.headers.get("accept-encoding", ""):
        response.body = gzip.compress(body, compresslevel=3, mtime=0)
        response.headers["Content-Encoding"] = "gzip"


async def explain(request: Request, error: Exception) -> HTTPResponse:
    """Errors as a page a person can read."""
    if isinstance(error, Misplaced):
        return await respond(request, error)
    if isinstance(error, NotSetUp):
        return html(render("not_set_up.html", port=request.app.ctx.port), status=error.status)
    if isinstance(error, ShammahError):
        status, message = error.status, error.message
    elif isinstance(error, PayloadTooLarge):
        limit = request.app.ctx.config.server.max_body_mb
        status = error.status_code
        message = (
            f"That was larger than {limit} MB, the most this box takes at once (server.max_body_mb in the "
            "settings). Nothing was done."
        )
    elif isinstance(error, SanicException) and error.status_code < 500:
        status, message = error.status_code, str(error)
    else:
        log.exception("The console failed on %s %s", request.method, request.path, exc_info=error)
        status, message = 500, "Something went wrong inside the box. The log says more; serving goes on."
    if wants_fragment(request):
        return text(message, status=status)
    return page(request, "error.html", status=status, title="That did not work", message=message)


async def lost(request: Request, error: NotFound) -> HTTPResponse:
    """An address that is none: a page for a person, the API's error for a program."""
    if request.path.startswith("/v1/") or not for_a_person(request):
        return await respond(request, error)
    response = page(
        request,
        "error.html",
        status=404,
        title="There is no such page",
        message="Nothing is at this address. It may have been mistyped, or what it showed is gone.",
    )
    await harden(request, response)
    return response


async def static(request: Request, asset_version: str, name: str) -> HTTPResponse:
    """A static file. Only under its own version may a browser keep it."""
    assets = load_assets()
    asset = assets.files.get(name)
    if asset is None:
        return text("Not found", status=404)
    fresh = asset_version == assets.version
    headers = {
        "Cache-Control": "public, max-age=31536000, immutable" if fresh else "no-cache",
        "Vary": "Accept-Encoding",
    }
    if asset.gzipped is not None and "gzip" in request.headers.get("accept-encoding", ""):
        headers["Content-Encoding"] = "gzip"
        return raw(asset.gzipped, headers=headers, content_type=asset.content_type)
    return raw(asset.body, headers=headers, content_type=asset.content_type)


def _is_page(response: HTTPResponse) -> bool:
    return response.content_type is not None and response.content_type.startswith("text/html")


def _public(request: Request) -> bool:
    return request.path in ("/login", *first_run.PUBLIC) or request.path.startswith(
        ("/static/", trust.PREFIX)
    )


blueprint.middleware(admit, "request")
blueprint.middleware(harden, "response")
blueprint.exception(Exception)(explain)
blueprint.add_route(static, "/static/<asset_version:str>/<name:path>", methods=["GET"], name="static")
blueprint.add_route(answer, f"{PREFIX}<token:str>", methods=["GET"], name="answer")
for room in (
    home,
    playground,
    compare,
    queue,
    chosen,
    transfer,
    example,
    review,
    runs,
    run,
    adapters,
    adapter,
    devices,
    device,
    models,
    restart,
    first_run,
    login,
    account,
    live,
    parts,
    logs,
    audit,
    backup,
    doctor,
    settings,
    settings_text,
    settings_history,
    trust,
):
    room.add_routes(blueprint)
