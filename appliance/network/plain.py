"""What becomes of plain HTTP from the network when the owner wants HTTPS only."""

from __future__ import annotations

import re

from sanic import HTTPResponse, Request
from sanic.response import redirect

from appliance.errors import Forbidden
from appliance.network.names import in_url
from appliance.network.request import BoxRequest
from appliance.origin import is_loopback

_NAMED = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?")
OPEN = ("/trust", "/static/", "/health", "/ready")
"""What has to be reached before a device trusts the box, and what supervisors ask; none of it is secret."""


async def only_secure(request: Request) -> HTTPResponse | None:
    """App-wide request middleware: where plain HTTP is not wanted, it leads to HTTPS.

    A program's request is refused rather than sent on: its key has come in the clear, and would every time.

    Raises:
        Forbidden: a program's, or a form.
    """
    assert isinstance(request, BoxRequest)
    ctx = request.app.ctx
    if ctx.config.tls.plain or ctx.network.https_port is None or request.unreadable:
        return None
    encrypted = request.conn_info is not None and request.conn_info.ssl
    # What came through a proxy that the owner trusts is that proxy's business.
    if encrypted or is_loopback(request.peer) or request.by_proxy or request.path.startswith(OPEN):
        return None
    there = f"https://{in_url(host_asked_for(request), ctx.network.https_port)}"
    if request.method in ("GET", "HEAD") and not request.path.startswith("/v1/"):
        query = f"?{request.query_string}" if request.query_string else ""
        return redirect(f"{there}{request.path}{query}", status=307)
    raise Forbidden(
        f"This box takes requests from the network by HTTPS only: use {there}/v1. "
        "What the device has to install for that is at /trust.",
        code="https_required",
    )


def host_asked_for(request: Request) -> str:
    """The host by which the client has reached the box, without port."""
    named = _NAMED.fullmatch(request.host)
    if named:  # it ends up in an address: nothing but a host may be in it
        return named[1].strip("[]")
    return str(request.conn_info.sockname[0]) if request.conn_info else "localhost"
