"""Pages from templates: the Jinja environment, its filters, and messages that survive a redirect."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime, tzinfo
from functools import cache
from typing import Any, Literal
from urllib.parse import quote, unquote, urlsplit
from zoneinfo import ZoneInfo

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from sanic import HTTPResponse, Request
from sanic.response import html, redirect

from appliance import __version__
from appliance.console.acts import in_words
from appliance.console.assets import load_assets, web_root
from appliance.console.shown import shown
from appliance.learning.selection import describe as describe_left_out

_NOTHING = "\u2013"
_ADAPTER = re.compile(r"adapter_(\d{8}T\d{6})Z((?:-\d+)?)")
ZONE_COOKIE = "shammah-zone"
_ZONE = re.compile(r"[A-Za-z0-9_+-]{1,32}(/[A-Za-z0-9_+-]{1,32}){0,2}")
FLASH_COOKIE = "shammah_flash"
FLASH_BYTES = 2_900
MAX_PATH = 2_000
_NO_RETURN = ("/login", "/logout", "/console/events", "/console/part", "/console/session")
"""After a login nobody wants to come back to these."""
Tone = Literal["good", "bad", "info"]

NAVIGATION = (
    ("home", "/", "Home"),
    ("playground", "/playground", "Playground"),
    ("queue", "/queue", "Queue"),
    ("review", "/review", "Needs review"),
    ("runs", "/runs", "Runs"),
    ("adapters", "/adapters", "Adapters"),
    ("devices", "/devices", "Devices"),
    ("models", "/models", "Models"),
    ("settings", "/settings", "Settings"),
)
"""The sections: name, which is also that of the icon; path; what it is called."""

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    # Not `no-referrer`: with it browsers send `Origin: null` on our own forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@cache
def environment() -> Environment:
    """The templates, with everything escaped and an unknown name an error."""
    env = Environment(
        loader=FileSystemLoader(web_root() / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters.update(
        when=when,
        duration=duration,
        size=size,
        number=number,
        measure=measure,
        apart=apart,
        adapter=adapter_title,
        left_out=describe_left_out,
        act=in_words,
        commands=commands,
    )
    env.globals.update(asset=load_assets().url, version=__version__)
    return env


def render(template: str, **context: Any) -> str:
    """The text of a template."""
    return environment().get_template(template).render(**context)


def page(
    request: Request,
    template: str,
    *,
    status: int = 200,
    section: str = "",
    bare: bool = False,
    **context: Any,
) -> HTTPResponse:
    """A whole page, with the message left by the action before it.

    Args:
        request: what asks for it; `admit` has noted there what every page needs.
        template: under `web/templates/`.
        status: of the response.
        section: the entry of `NAVIGATION` it belongs to.
        bare: without the sections and what is live, even for the owner.
        context: what the template shows.
    """
    flash = _read_flash(request)
    logged_in = getattr(request.ctx, "logged_in", False)
    open_to_this_machine = getattr(request.ctx, "open_to_this_machine", False)
    body = render(
        template,
        flash=flash,
        box_name=request.app.ctx.config.console.name,
        logged_in=logged_in,
        open_to_this_machine=open_to_this_machine,
        navigation=NAVIGATION if (logged_in or open_to_this_machine) and not bare else (),
        section=section,
        seen=getattr(request.ctx, "seen", 0),
        review_count=getattr(request.ctx, "review_count", 0),
        **context,
    )
    response = html(body, status=status)
    if flash is not None:
        response.cookies.delete_cookie(FLASH_COOKIE, secure=is_https(request))
    return response


def back(request: Request, message: str = "", tone: Tone = "good", to: str | None = None) -> HTTPResponse:
    """Redirect after an action (303), with a message for the next page.

    Args:
        request: the form that was posted.
        message: what to say there.
        tone: how it went.
        to: where; None for the page that had the form.
    """
    response = redirect(to or page_before(request), status=303)
    if message:
        response.add_cookie(
            FLASH_COOKIE,
            base64.urlsafe_b64encode(flash(message, tone)).decode(),
            path="/",
            max_age=60,
            httponly=True,
            samesite="Strict",
            secure=is_https(request),
        )
    return response


def flash(message: str, tone: Tone) -> bytes:
    """A message as it travels; what is too long for that is cut, as browsers drop a cookie of 4 kB."""
    for length in (1000, 400, 200):
        told = message if len(message) <= length else f"{message[:length]}…"
        payload = json.dumps({"message": told, "tone": tone}, ensure_ascii=False).encode(errors="replace")
        if len(payload) <= FLASH_BYTES:
            break
    return payload


def page_before(request: Request) -> str:
    """Path and query of the page that sent the form. Its host is not looked at: only a path is taken."""
    try:
        before = urlsplit(request.headers.get("referer", ""))
        before.geturl().encode()  # bytes that are no text cannot go into an address again
    except ValueError:
        return "/"
    # Two slashes at the beginning would name another host.
    path = shown.origin("/" + before.path.lstrip("/\\"))
    return f"{path}?{before.query}" if before.query else path


def own_path(text: str, otherwise: str = "/") -> str:
    """A path and query on this box, as text that came from outside names it; else the other.

    Browsers read a second slash or a backslash as the beginning of another host, and leave tabs and line
    ends out before they look: nothing but printable ASCII after a single slash passes.
    """
    fit = re.fullmatch(r"/(?![/\\])[!-\[\]-~]*", text)
    return text if fit and len(text) <= MAX_PATH and not text.startswith(_NO_RETURN) else otherwise


def login_path(wanted: str) -> str:
    """The login, from which the way leads on to the page that was asked for."""
    wanted = own_path(wanted)
    return "/login" if wanted == "/" else f"/login?next={quote(wanted, safe='/')}"


def form_field(request: Request, name: str) -> str:
    """A field of the posted form, without white space around it; empty when it was not sent."""
    form = request.form
    return ((form.get(name) if form else None) or "").strip()


def is_https(request: Request) -> bool:
    """Whether the browser's own connection is encrypted, so that a cookie may demand it.

    Behind a proxy that does the encrypting only the browser knows; it says so in the origin of a form.
    """
    return request.scheme == "https" or request.headers.get("origin", "").startswith("https://")


def wants_fragment(request: Request) -> bool:
    """Whether a script asks for a piece to put in the page, not for a page."""
    return request.headers.get("hx-request") == "true"


def _read_flash(request: Request) -> dict[str, str] | None:
    raw = request.cookies.get(FLASH_COOKIE)
    if not raw:
        return None
    try:
        data = json.loads(base64.urlsafe_b64decode(raw))
        tone = data["tone"] if data["tone"] in ("good", "bad", "info") else "info"
        # Half a surrogate pair can be written in JSON, and cannot be sent.
        return {"message": str(data["message"]).encode(errors="replace").decode(), "tone": tone}
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def when(at: float | None, style: str = "ago") -> Markup:
    """A moment as a `<time>` element. Scripts turn it into the viewer's zone; without, it is UTC."""
    if at is None:
        return Markup(_NOTHING)
    moment = datetime.fromtimestamp(at, UTC)
    full = moment.strftime("%d %b %Y, %H:%M UTC").lstrip("0")
    away = at - time.time()
    if style == "exact":
        text = f"{moment.day} {moment:%b, %H:%M:%S} UTC"
    elif style == "short":
        text = f"{moment.day} {moment:%b, %H:%M} UTC"
    elif style == "utc-day":
        text = f"{moment.day} {moment:%b}"
    elif style == "ago":
        if -10 < away <= 0:
            text = "just now"
        else:
            text = f"{duration(-away)} ago" if away < 0 else f"in {duration(away)}"
    else:
        text = full
    stamp = moment.strftime("%Y-%m-%dT%H:%M:%SZ")
    return Markup('<time datetime="{}" data-style="{}" title="{}">{}</time>').format(
        stamp, style, full, escape(text)
    )


def when_day(at: float, zone: tzinfo | None) -> Markup:
    """The day that begins at a moment in the viewer's zone; where that is not known yet, in UTC."""
    if zone is None:
        return when(at, "utc-day")
    moment = datetime.fromtimestamp(at, zone)
    stamp = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Markup('<time datetime="{}" data-style="day">{}</time>').format(stamp, f"{moment.day} {moment:%b}")


def viewer_zone(request: Request) -> tzinfo | None:
    """The zone of who looks, as a script has told; None before it has."""
    name = unquote(request.cookies.get(ZONE_COOKIE) or "")
    try:
        return ZoneInfo(name) if _ZONE.fullmatch(name) else None
    except (KeyError, ValueError, OSError):  # there is none of that name
        return None


def duration(seconds: float) -> str:
    """A span of time in its one or two largest units, as `3 h 20 min`."""
    total = max(0, int(seconds))
    if total < 60:
        return f"{total} s"
    minutes, hours, days = total // 60, total // 3600, total // 86400
    if minutes < 60:
        return f"{minutes} min"
    if hours < 24:
        rest = minutes % 60
        return f"{hours} h {rest} min" if rest and hours < 6 else f"{hours} h"
    return f"{days} day" if days == 1 else f"{days} days"


def size(count: float) -> str:
    """Bytes for people: `4.9 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def number(value: float) -> str:
    """A count with thousands separated."""
    return f"{value:,.0f}"


def adapter_title(name: str | None) -> Markup:
    """What an adapter is to a person: when it was learned. Files named by people keep their name."""
    if name is None:
        return Markup("Base model")
    made = _ADAPTER.fullmatch(name)
    try:
        moment = datetime.strptime(made[1] if made else "", "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return escape(name)
    assert made is not None
    return Markup("Learned {}{}").format(when(moment.timestamp(), "short"), made[2].replace("-", " #"))


def commands(text: str) -> Markup:
    """A text in which what stands between backticks is to be typed."""
    pieces = enumerate(text.split("`"))
    return Markup("").join(
        Markup("<code>{}</code>").format(piece) if at % 2 else piece for at, piece in pieces
    )


def apart(check: Mapping[str, Any]) -> tuple[str, str]:
    """What a check measured and its limit, with as many digits as tell them apart."""
    measured, limit = check.get("measured"), check.get("limit")
    for digits in range(4, 12):
        told = measure(measured, digits), measure(limit, digits)
        if told[0] != told[1] or measured == limit:
            break
    return told


def measure(value: Any, digits: int = 4) -> str:
    """A measured value of a gate report, whatever its type, short enough for a table cell."""
    if value is None:
        return _NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    return str(value)
