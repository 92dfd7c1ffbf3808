"""Logging in and out, and slowing down whoever guesses."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sanic import Blueprint, HTTPResponse, Request
from sanic.response import empty, text

from appliance.console.render import back, is_https, login_path, own_path, page, page_before, wants_fragment
from appliance.errors import Unavailable
from appliance.origin import trusted_loopback
from appliance.store import Store
from appliance.store.known import COOKIE as KNOWN
from appliance.store.known import KNOWN_SECONDS, cookie_of, known_as, remember
from appliance.store.known import SECURE_COOKIE as KNOWN_SECURE
from appliance.store.owner import (
    SECURE_COOKIE,
    SESSION_COOKIE,
    WRITE_WAIT,
    create_session,
    end_session,
    password_set,
    session_token,
    session_valid,
    verify_password,
)

logger = logging.getLogger(__name__)

_MAX_ADDRESSES = 10_000
_SECRETS = ("password", "again", "old", "key", "token", "username")
"""Fields of forms that are typed anew rather than sent to the browser once more."""
_SENT = "sent."


@dataclass
class _Failures:
    count: int = 0
    last: float = 0.0
    noted: bool = False


class Throttle:
    """Login attempts by address: some are free, then each failure doubles the wait.

    Every attempt counts as failed until it has succeeded, so that many at once gain nothing. The
    same rule holds for all addresses together, as one machine may use many; but with a larger
    allowance and a short wait, and not for who is known: it would be a way to keep the owner out.
    """

    def __init__(
        self,
        free: int = 5,
        free_overall: int = 50,
        longest: float = 900.0,
        longest_overall: float = 30.0,
    ) -> None:
        self._free = free
        self._free_overall = free_overall
        self._longest = longest
        self._longest_overall = longest_overall
        self._by_address: OrderedDict[str, _Failures] = OrderedDict()
        # Apart, so that no number of strangers pushes the failures of these out.
        self._of_known: OrderedDict[str, _Failures] = OrderedDict()
        self._overall = _Failures()

    def attempt(self, address: str, known: str | None = None) -> float:
        """Count an attempt. Returns 0 when it may go on, else the seconds to wait.

        Args:
            address: where it comes from.
            known: what it is called that has succeeded before, and answers for itself alone.
        """
        now = time.monotonic()
        group, who = (self._by_address, address) if known is None else (self._of_known, known)
        mine = group.setdefault(who, _Failures())
        group.move_to_end(who)
        if len(group) > _MAX_ADDRESSES:
            group.popitem(last=False)
        counted = [mine] if known is not None else [mine, self._overall]
        wait = _remaining(mine, self._free, self._longest, now)
        if known is None:
            wait = max(wait, _remaining(self._overall, self._free_overall, self._longest_overall, now))
        if wait > 0:
            return wait
        for failures in counted:
            if now - failures.last > self._longest:
                failures.count = 0
            failures.count += 1
            failures.last = now
            failures.noted = False
        return 0.0

    def worth_noting(self, address: str, known: str | None = None) -> bool:
        """Whether this refusal is the first of its wait.

        One can be refused a thousand times a second: all of that in the audit trail would push out of it
        what matters.
        """
        mine = self._by_address.get(address) if known is None else self._of_known.get(known)
        waits = mine is not None and _remaining(mine, self._free, self._longest, time.monotonic()) > 0
        refusing = mine if mine is not None and waits else self._overall
        first, refusing.noted = not refusing.noted, True
        return first

    def succeeded(self, address: str, known: str | None = None) -> None:
        """The attempt was good: forget its failures."""
        if known is not None:
            self._of_known.pop(known, None)
            return
        mine = self._by_address.pop(address, None)
        self._overall.count = max(0, self._overall.count - (mine.count if mine else 1))


def _remaining(failures: _Failures, free: int, longest: float, now: float) -> float:
    excess = failures.count - free
    if excess < 0:
        return 0.0
    return failures.last + min(longest, 2.0 ** min(excess + 2, 20)) - now


throttle = Throttle()


def add_routes(blueprint: Blueprint) -> None:
    """Put `/login` and `/logout` on the blueprint."""
    blueprint.add_route(show, "/login", methods=["GET"], name="login")
    blueprint.add_route(log_in, "/login", methods=["POST"], name="log_in")
    blueprint.add_route(log_out, "/logout", methods=["POST"], name="log_out")
    blueprint.add_route(ask, "/console/session", methods=["GET"], name="session")


async def show(request: Request) -> HTTPResponse:
    """The login form."""
    wanted = own_path(request.args.get("next", ""))
    if request.ctx.logged_in or not request.ctx.password_set:
        return back(request, to=wanted)
    return _form(request, wanted)


async def ask(request: Request) -> HTTPResponse:
    """Whether the session goes on: who is answered was let in."""
    return empty()


def interrupted(request: Request) -> HTTPResponse:
    """The login in answer to a form of an ended session: nothing was done, and what it said goes along.

    Forms with files come back without them; secrets are not sent to the browser again.
    """
    files = request.content_type.startswith("multipart/form-data")
    form: Any = {} if files else request.get_form(keep_blank_values=True) or {}
    sent = [(name, value) for name in form for value in form.getlist(name) if name not in _SECRETS]
    problem = "Your session has ended; nothing was done." + (" Log in and try again." if not sent else "")
    return _form(request, own_path(page_before(request)), problem, sent, own_path(request.path), status=401)


def _form(
    request: Request,
    wanted: str,
    problem: str | None = None,
    sent: Sequence[tuple[str, str]] = (),
    sent_to: str = "/",
    status: int = 200,
) -> HTTPResponse:
    return page(
        request, "login.html", status=status, problem=problem, wanted=wanted, sent=sent, sent_to=sent_to
    )


def _sent(request: Request) -> list[tuple[str, str]]:
    """What a form of an ended session said, as the login form brought it."""
    form: Any = request.get_form(keep_blank_values=True) or {}
    return [
        (name.removeprefix(_SENT), value)
        for name in form
        if name.startswith(_SENT)
        for value in form.getlist(name)
    ]


async def log_in(request: Request) -> HTTPResponse:
    """Check the password and start a session. A page that is open asks by a script, and stays."""
    store = request.app.ctx.store
    wanted, sent = own_path(secret_field(request, "next")), _sent(request)
    sent_to = own_path(secret_field(request, "sent_to"))

    def refused(problem: str, status: int) -> HTTPResponse:
        if wants_fragment(request):
            return text(problem, status=status)
        if not sent and request.headers.get("sec-fetch-mode") == "navigate":
            return back(request, problem, "bad", login_path(wanted))  # nothing that Back could not show again
        return _form(request, wanted, problem, sent, sent_to, status)

    if not request.ctx.password_set:
        return back(request, to=wanted)
    known = await asyncio.to_thread(known_visitor, request)
    wait = throttle.attempt(request.ip, known)
    metrics = request.app.ctx.metrics
    if wait > 0:
        metrics.http.login("throttled")
        if throttle.worth_noting(request.ip, known):
            await asyncio.to_thread(_note, store, request.ip, "login.throttled", {})
        problem = f"Too many attempts. Try again in {math.ceil(wait)} seconds."
        response = refused(problem, 429)
        response.headers["Retry-After"] = str(math.ceil(wait))
        return response
    if not await asyncio.to_thread(verify_password, store, secret_field(request, "password")):
        metrics.http.login("failed")
        await asyncio.to_thread(_note, store, request.ip, "login.failed", {})
        return refused("That is not the password.", 401)
    metrics.http.login("succeeded")
    throttle.succeeded(request.ip, known)
    await asyncio.to_thread(_note, store, "owner", "login", {"address": request.ip})
    if wants_fragment(request):
        answer = empty()
    elif sent:
        answer = page(request, "login_again.html", bare=True, wanted=wanted, sent=sent, sent_to=sent_to)
    else:
        answer = back(request, to=wanted)
    return await begin_session(request, answer)


def known_visitor(request: Request) -> str | None:
    """What the one who tries is called among those who have logged in before; None for a stranger. Blocking.

    On this machine itself one is never a stranger: that is the way back for who has no such browser.
    """
    store = request.app.ctx.store
    if found := known_as(store, cookie_of(request.cookies), request.ip):
        return found
    return "this machine" if trusted_loopback(request.ip, request.headers) else None


def secret_field(request: Request, name: str) -> str:
    """A password of the posted form as it was typed; empty when it was not sent."""
    form = request.form
    return (form.get(name) if form else None) or ""


async def begin_session(request: Request, response: HTTPResponse) -> HTTPResponse:
    """Log this browser in: the answer carries the cookie of a fresh session, and one to know it by later.

    A session that came with the request is ended: the token changes with every login.
    """
    store, hours = request.app.ctx.store, request.app.ctx.config.console.session_hours
    old = session_token(request.cookies)
    if old:
        await asyncio.to_thread(end_session, store, old)
    token = await asyncio.to_thread(create_session, store, hours, request.ip)
    known = await asyncio.to_thread(remember, store, cookie_of(request.cookies), request.ip)
    secure = is_https(request)

    def keep(name: str, value: str, seconds: int) -> None:
        response.add_cookie(
            name, value, path="/", max_age=seconds, httponly=True, samesite="Strict", secure=secure
        )

    keep(SECURE_COOKIE if secure else SESSION_COOKIE, token, int(hours * 3600))
    if known is not None:
        keep(KNOWN_SECURE if secure else KNOWN, known, KNOWN_SECONDS)
    return response


async def still_admitted(request: Request) -> bool:
    """Whether who was let in would be again: a stream may outlast the session, and the password."""
    store, token = request.app.ctx.store, session_token(request.cookies)

    def look() -> bool:
        if password_set(store):
            return session_valid(store, token)
        return trusted_loopback(request.ip, request.headers)

    return await asyncio.to_thread(look)


def _note(store: Store, actor: str, action: str, detail: dict[str, Any]) -> None:
    """Audit it, or log it if the store takes nothing: the owner must get in to do something about that."""
    try:
        with store.transaction(WRITE_WAIT):
            store.audit.add(actor, action, detail)
    except Unavailable as error:
        logger.warning("Not in the audit trail (%s): %s %s %s", error.message, actor, action, detail)


async def log_out(request: Request) -> HTTPResponse:
    """End the session, here and in the store."""
    store = request.app.ctx.store
    token = session_token(request.cookies)
    if token and request.ctx.logged_in:
        await asyncio.to_thread(end_session, store, token)
        await asyncio.to_thread(_note, store, "owner", "logout", {"address": request.ip})
    response = back(request, "You are logged out.", "info", "/login")
    response.delete_cookie(SECURE_COOKIE)
    # A browser takes no word about cookies for HTTPS from plain HTTP, not even that they end.
    response.cookies.delete_cookie(SESSION_COOKIE, secure=is_https(request))
    return response
