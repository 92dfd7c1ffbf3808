"""Every failure of the API in OpenAI's shape: `{"error": {message, type, param, code}}`."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from sanic import HTTPResponse, Request, Sanic
from sanic import json as json_response
from sanic.exceptions import NotFound, SanicException
from sanic.handlers import ErrorHandler

from appliance.api import base_url
from appliance.errors import Busy, InvalidRequest, ShammahError, Unavailable

logger = logging.getLogger(__name__)

LEFT = 499
"""The status of a request whose client left before the answer began, as everybody counts it."""
Model = TypeVar("Model", bound=BaseModel)


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


def parse(request: Request, model: type[Model]) -> Model:
    """The request's JSON body as `model`.

    Raises:
        InvalidRequest: malformed JSON, wrong types or values; `param` names the first field at fault.
    """
    try:
        # Python's parser takes NaN and Infinity, which are not JSON.
        data = json.loads(request.body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}", code="invalid_json") from error
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise explain(error) from error


def explain(error: ValidationError) -> InvalidRequest:
    """The first problem pydantic found, as a person would say it."""
    problem = error.errors()[0]
    path = ""
    for part in problem["loc"]:
        # Union members add their type's name to the path, which is no field of the request.
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier() and part.islower() and part not in ("str", "int", "float", "list"):
            path += f".{part}" if path else part
    path = path.removesuffix(".constrained")
    message = problem["msg"].removeprefix("Value error, ")
    return InvalidRequest(f"{path}: {message}" if path else message, param=path or None, code="invalid_value")


async def broken_off(request: Request, error: BaseException) -> HTTPResponse:
    """What is written down of a request that was broken off; nobody reads it when its client has left."""
    if request.conn_info is not None and request.conn_info.lost:
        return json_response({}, status=LEFT)
    return await respond(request, Unavailable("The box is shutting down."))


def setup(app: Sanic[Any, Any]) -> None:
    """Answer every exception that no blueprint handles."""
    app.error_handler.add(Exception, respond)
    app.error_handler.add(asyncio.CancelledError, broken_off)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
