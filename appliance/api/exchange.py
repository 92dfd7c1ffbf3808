"""A request and its response as a whole: its id, the line in the log when it is over, the counting.

The id is the client's own, `X-Request-ID`, where that could be one; else it is made here. It goes back with
every response, and into every line that is logged on the way.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from typing import Any

from sanic import Request
from sanic.constants import HTTP_METHODS
from sanic.response import BaseHTTPResponse

from appliance import logs
from appliance.api.answer import Answer
from appliance.metrics.exposition import Metrics
from appliance.network.request import BoxRequest

# Not this module's name: who reads logs looks for it, and it may be silenced alone.
access = logging.getLogger("appliance.access")

HEADER = "x-request-id"
_SANE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+=\-]{0,127}", re.ASCII)
_IN_HEAD = frozenset({"method", "route", "status", "seconds"})


class Exchange(BoxRequest):
    """A request that has an id from its very beginning, and tells it in its response.

    Sanic makes one for what is no request at all, too.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        sent = self.headers.get(HEADER, "")
        self._id = sent if _SANE.fullmatch(sent) else f"req_{secrets.token_hex(12)}"
        self.ctx.began = time.perf_counter()
        self.ctx.status = 0
        self.ctx.over = False
        logs.begin_request(self._id)

    @property
    def id(self) -> str:
        """What the client called it, or we do."""
        return str(self._id)

    def over(self) -> None:
        """It is answered, or its client has gone: counted, if it was not yet."""
        end(self)

    async def respond(self, *arguments: Any, **options: Any) -> Any:
        """Begin the response; all of them come this way."""
        response: BaseHTTPResponse = await super().respond(*arguments, **options)
        response.headers[HEADER] = self.id
        self.ctx.status = response.status
        return response


async def completed(request: Request, **_: Any) -> None:
    """Sanic's signal handler: the response is complete, but for its last byte perhaps."""
    end(request)


def end(request: Request) -> None:
    """Count the exchange and log it, once: when it is complete, or its client has gone."""
    if request.ctx.over:
        return
    request.ctx.over = True
    seconds = time.perf_counter() - request.ctx.began
    if getattr(request.ctx, "counted", False) and 400 <= request.ctx.status < 499:
        request.app.ctx.limits.give_back(request.ctx.device)  # refused; who left early was answered
    route = f"/{request.route.path}" if request.route else "none"
    metrics: Metrics = request.app.ctx.metrics
    metrics.http.responded(route, request.ctx.status, _caller(request), seconds)
    # Pages, and what machines ask every few seconds as a matter of course, are for who looks for faults.
    level = logging.INFO if request.path.startswith("/v1/") else logging.DEBUG
    if access.isEnabledFor(level):
        fields = _fields(request, route, seconds)
        head = f"{fields['method']} {route} {request.ctx.status} {seconds:.3f}s"
        rest = (f"{name}={value}" for name, value in fields.items() if name not in _IN_HEAD)
        access.log(level, "%s", " ".join([head, *rest]), extra={"fields": fields})


def _fields(request: Request, route: str, seconds: float) -> dict[str, Any]:
    """What the line says: never an address as it was sent, which may hold secrets and texts."""
    fields: dict[str, Any] = {
        "method": request.method if request.method in HTTP_METHODS else "?",
        "route": route,
        "status": request.ctx.status,
        "seconds": round(seconds, 4),
        "client": request.ip,
        "caller": _caller(request),
    }
    if (device := getattr(request.ctx, "device", None)) is not None:
        fields["device"] = device.id
    answer: Answer | None = getattr(request.ctx, "answer", None)
    if answer is not None:
        usage = answer.usage
        fields |= {
            "completion": answer.id,
            "prompt_tokens": usage["prompt_tokens"],
            "completion_tokens": usage["completion_tokens"],
            "adapter": answer.adapter or "base",
            "finish": answer.outcome,
        }
    return fields


def _caller(request: Request) -> str:
    """What kind of caller it is: one of few words, unlike its name."""
    if getattr(request.ctx, "logged_in", False):
        return "owner"
    if getattr(request.ctx, "open_to_this_machine", False):
        return "keyless"
    return str(getattr(request.ctx, "caller", "nobody"))
