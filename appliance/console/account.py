"""The owner's account: another password, and who is logged in."""

from __future__ import annotations

import asyncio
import math

from sanic import Blueprint, HTTPResponse, Request

from appliance.console.actions import audit
from appliance.console.login import begin_session, known_visitor, secret_field, throttle
from appliance.console.render import back, page
from appliance.errors import ShammahError
from appliance.store.owner import (
    MAX_PASSWORD,
    MIN_PASSWORD,
    end_other_sessions,
    list_sessions,
    session_token,
    set_password,
    verify_password,
)


def add_routes(blueprint: Blueprint) -> None:
    """Put `/account` on the blueprint."""
    blueprint.add_route(show, "/account", methods=["GET"], name="account")
    blueprint.add_route(change_password, "/account/password", methods=["POST"], name="change_password")
    blueprint.add_route(end_others, "/account/sessions", methods=["POST"], name="end_other_sessions")


async def show(request: Request) -> HTTPResponse:
    """The page."""
    return await _page(request)


async def change_password(request: Request) -> HTTPResponse:
    """Replace the password, for who knows the present one; every session ends, this one begins anew."""
    store = request.app.ctx.store
    if not request.ctx.logged_in:
        return back(request, to="/setup")
    password = secret_field(request, "password")
    if password != secret_field(request, "again"):
        return await _page(request, "The new passwords are not the same. Type the new one twice.")
    # Who has found an open browser may guess here as little as at the login.
    token = session_token(request.cookies)
    # What strangers try is no reason to keep the owner from another password.
    me = await asyncio.to_thread(known_visitor, request) or f"session {token}"
    wait = throttle.attempt(request.ip, me)
    if wait > 0:
        seconds = math.ceil(wait)
        response = await _page(request, f"Too many attempts. Try again in {seconds} seconds.", 429)
        response.headers["Retry-After"] = str(seconds)
        return response
    if not await asyncio.to_thread(verify_password, store, secret_field(request, "old")):
        await audit(request, "account.password.failed")
        return await _page(request, "That is not the present password. Nothing was changed.")
    throttle.succeeded(request.ip, me)
    try:
        await asyncio.to_thread(set_password, store, password)
    except ShammahError as error:
        return await _page(request, error.message)
    await audit(request, "account.password")
    return await begin_session(request, back(request, "The password is changed.", to="/account"))


async def end_others(request: Request) -> HTTPResponse:
    """Log every other browser out."""
    if not request.ctx.logged_in:
        return back(request, to="/setup")
    token = session_token(request.cookies) or ""
    ended = await asyncio.to_thread(end_other_sessions, request.app.ctx.store, token)
    await audit(request, "account.sessions", ended=ended)
    message = "One other browser is logged out." if ended == 1 else f"{ended} other browsers are logged out."
    return back(request, message, to="/account")


async def _page(request: Request, problem: str | None = None, status: int = 400) -> HTTPResponse:
    token = session_token(request.cookies)
    sessions = await asyncio.to_thread(list_sessions, request.app.ctx.store, token)
    return page(
        request,
        "account.html",
        status=200 if problem is None else status,
        section="account",
        problem=problem,
        sessions=sessions,
        min_password=MIN_PASSWORD,
        max_password=MAX_PASSWORD,
    )
