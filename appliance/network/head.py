"""The head of a request is looked at before anything takes it apart: how many fields, how long, of what form.

What reads single fields can rely on that. Sanic has bounded the whole (8 kB) by then.
"""

from __future__ import annotations

import re
from typing import Any

from sanic import Request

from appliance.errors import HeadTooLarge, InvalidRequest

MAX_FIELDS = 100
MAX_VALUE = 4096
"""Characters of one value, but for those in `_LONG`: cookies of all services on this host come in one."""
_LONG = frozenset({"cookie", "referer"})
_ONCE = frozenset({"host", "authorization", "content-type", "origin"})
"""Two of these would be read differently by a proxy and by the box."""
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_HOST = re.compile(r"(?:\[[0-9a-fA-F:.]{2,60}\]|[A-Za-z0-9._-]{1,255})(?::[0-9]{1,5})?")


async def screen(request: Request, **_: Any) -> None:
    """Sanic's signal handler, for every request as soon as its head is there.

    Raises:
        HeadTooLarge: it has more or longer fields than anybody means.
        InvalidRequest: a field is none, or says what cannot be.
    """
    fields = list(request.headers.items())
    if len(fields) > MAX_FIELDS:
        raise HeadTooLarge(f"The request has more than {MAX_FIELDS} header fields.")
    seen = set()
    for name, value in fields:
        if not _NAME.fullmatch(name):
            raise InvalidRequest("The name of a header field is none.", code="invalid_header")
        if len(value) > MAX_VALUE and name not in _LONG:
            raise HeadTooLarge(f"The header {name} is longer than {MAX_VALUE:,} characters.", param=name)
        if _CONTROL.search(value):
            raise InvalidRequest(
                f"The header {name} has a control character in it.", param=name, code="invalid_header"
            )
        if name in _ONCE and name in seen:
            raise InvalidRequest(
                f"The header {name} is there more than once.", param=name, code="invalid_header"
            )
        seen.add(name)
    host = request.headers.get("host", "")
    if not host and request.version == "1.1":  # else it would be told that it comes from another machine
        raise InvalidRequest("A request of HTTP/1.1 names its host.", param="host", code="invalid_header")
    if host and not _HOST.fullmatch(host):
        raise InvalidRequest("The header host is no name or address.", param="host", code="invalid_header")
