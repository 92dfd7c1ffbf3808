"""Every failure of the API in OpenAI's shape: `{"error": {message, type, param, code}}`."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from sanic import HTTPResponse, Request, Sanic
from sanic import json as json_response
from sanic.exceptions import NotFound, PayloadTooLarge, SanicException
from sanic.handlers import ErrorHandler

from appliance.api import base_url
from appliance.errors import Busy, HeadTooLarge, InvalidRequest, ShammahError, Unavailable
from appliance.network.aside import LARGE, beside
from appliance.reading import read_json

logger = logging.getLogger(__name__)

LEFT = 499
"""The status of a request whose client left before the answer began, as everybody counts it."""
Model = TypeVar("Model", bound=BaseModel)
_TYPES = ("str", "int", "float", "list", "constrained")
_SHOULD_BE = "Input should be "
_OBJECT = re.compile(r"a valid dictionary( or .*)?$")


class RouteErrors(ErrorHandler):
    """Finds the handler for an error: the route's blueprint comes first.

    Sanic's own remembers who has handled a class of errors where no route was found, and from then on
    asks them everywhere: one wrong address, and the console's pages turn into JSON.
    """

    def lookup(self, exception: BaseException, route_name: str | None = None) -> Any:
        """The handler for this error at this route; None when there is none."""
        for name in (route_name, None):
            for ancestor in type(exception).__mro__:
                if handler := self.cached_handlers.get((ancestor, name)):
                    return handler
        return None


def error_object(error: BaseException) -> tuple[int, dict[str, Any]]:
    """(HTTP status, error object) for an exception; unexpected ones say nothing of the inside."""
    if isinstance(error, ShammahError):
        status, kind, param, code = error.status, error.type, error.param, error.code
        message = error.message
    elif isinstance(error, SanicException):
        status, param = error.status_code, None
        message = str(error) or "The request cannot be served."
        kind = "invalid_request_error" if status < 500 else "server_error"
        code = {404: "unknown_url", 405: "method_not_allowed", 413: "request_too_large"}.get(status)
        if isinstance(error, PayloadTooLarge) and message.startswith("Request header"):
            status, code = HeadTooLarge.status, HeadTooLarge.code
            message = "The address and the header of the request are larger than 8 kB."
    else:
        status, kind, param, code = 500, "server_error", None, "internal_error"
        message = "Something failed inside the box. The log says more."
    return status, {"error": {"message": message, "type": kind, "param": param, "code": code}}


async def respond(request: Request, error: Exception) -> HTTPResponse:
    """Sanic's exception handler."""
    if isinstance(error, NotFound):
        error = NotFound(base_url.explain(request.path))
    status, body = error_object(error)
    if isinstance(error, ShammahError):
        request.app.ctx.metrics.http.refused(error.code or error.type)
    if status >= 500 and not isinstance(error, ShammahError):
        logger.exception("%s %s failed", request.method, request.path, exc_info=error)
    headers = dict(getattr(error, "headers", None) or {})
    if isinstance(error, Busy):
        headers["Retry-After"] = str(error.retry_after)
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return json_response(body, status=status, headers=headers)


async def parse(request: Request, model: type[Model]) -> Model:
    """The request's JSON body as `model`, read beside the event loop if it is large. It can be read once.

    Raises:
        InvalidRequest: malformed JSON, wrong types or values; `param` names the first field at fault.
    """
    body, request.body = request.body, b""  # not kept while the request waits and is answered
    request.ctx.body_size = len(body)

    def read() -> Model:
        try:
            return model.model_validate(read_json(body))
        except ValidationError as error:
            raise explain(error) from error

    return await beside(read) if len(body) > LARGE else read()


def explain(error: ValidationError) -> InvalidRequest:
    """The first problem pydantic found, as a person would say it.

    Where a value may be one thing or another, each has its say: the one that came furthest was meant. When
    none came any distance, all of them are what it should have been.
    """
    problems = [
        (_path(one["loc"]), one["msg"]) for one in error.errors(include_url=False, include_input=False)
    ]
    first = problems[0][0]
    same = [one for one in problems if one[0][: len(first)] == first]
    path = max((one[0] for one in same), key=len)
    told = dict.fromkeys(message for where, message in same if where == path)
    message = _one_of(list(told))
    param = "".join(path).removeprefix(".")
    return InvalidRequest(
        f"{param}: {message}" if param else message, param=param or None, code="invalid_value"
    )


def _path(location: tuple[int | str, ...]) -> tuple[str, ...]:
    """Where in the request. Members of unions add their type's name, which is no field of it."""
    path = []
    for part in location:
        if isinstance(part, int):
            path.append(f"[{part}]")
        elif part.isidentifier() and part.islower() and part not in _TYPES:
            path.append(f".{part[:64]}")
    return tuple(path)


def _one_of(messages: list[str]) -> str:
    """Several things that a value should have been, in one sentence."""
    told = [_OBJECT.sub("an object", message.removeprefix("Value error, ")) for message in messages]
    if len(told) > 1 and all(message.startswith(_SHOULD_BE) for message in told):
        return _SHOULD_BE + " or ".join(message.removeprefix(_SHOULD_BE) for message in told)
    return told[0]


async def broken_off(request: Request, error: BaseException) -> HTTPResponse:
    """What is written down of a request that was broken off; nobody reads it when its client has left."""
    if request.conn_info is not None and request.conn_info.lost:
        return json_response({}, status=LEFT)
    return await respond(request, Unavailable("The box is shutting down."))


def setup(app: Sanic[Any, Any]) -> None:
    """Answer every exception that no blueprint handles."""
    app.error_handler.add(Exception, respond)
    app.error_handler.add(asyncio.CancelledError, broken_off)
