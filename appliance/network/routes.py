"""Which handler an address and a method lead to, by the rules of HTTP.

What stands in an address is percent-encoded, once; a handler gets it decoded, once. HEAD is GET without a
body, OPTIONS asks what there is, and who uses another method is told which ones would do.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

from sanic import HTTPResponse, Request, Sanic
from sanic.constants import HTTP_METHODS
from sanic.exceptions import BadRequest, MethodNotAllowed, NotFound, SanicException
from sanic.response import empty
from sanic.router import Router

Found = tuple[Any, Any, dict[str, Any]]
_ESCAPE = re.compile("%([0-9A-Fa-f]{2})")
_BROKEN = re.compile("%(?![0-9A-Fa-f]{2})")
_SLASHES = re.compile("/{2,}")
_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


class Options(SanicException):
    """Somebody asks what can be done at an address: an answer, and no error."""

    status_code = 204
    quiet = True

    def __init__(self, methods: tuple[str, ...]) -> None:
        super().__init__("")
        self.methods = methods


class Routes(Router):
    """The routes of API and console."""

    def get(self, path: str, method: str, host: str | None) -> Found:  # type: ignore[override]
        """The route for a request, its handler, and what its address says.

        Raises:
            BadRequest: the address is not encoded as addresses are.
            NotFound: nothing is there.
            MethodNotAllowed: something is, but not by this method.
            Options: it was asked by which.
        """
        if _BROKEN.search(path):
            raise BadRequest("A percent sign in an address is followed by two hexadecimal digits.")
        try:
            route, handler, found = super().get(path, "GET" if method == "HEAD" else method, host)
        except (NotFound, MethodNotAllowed) as error:
            methods = self.methods(path)
            if not methods:
                raise NotFound(f"There is nothing at {path}.") from error
            if method == "OPTIONS":
                raise Options(methods) from None
            raise MethodNotAllowed(
                f"{path} takes {', '.join(methods)}, not {method if method in HTTP_METHODS else 'that'}.",
                method=method,
                allowed_methods=methods,
            ) from error
        return route, handler, {name: _decoded(value) for name, value in found.items()}

    def methods(self, path: str) -> tuple[str, ...]:
        """What can be done at an address; nothing where there is none."""
        able = []
        for method in sorted({str(method.value) for method in HTTP_METHODS} - {"OPTIONS", "HEAD"}):
            try:
                super().get(path, method, None)
            except (NotFound, MethodNotAllowed):
                continue
            able += [method, "HEAD"] if method == "GET" else [method]
        return (*able, "OPTIONS") if able else ()


def setup(app: Sanic[Any, Any]) -> None:
    """Answer who asks what can be done at an address."""
    app.error_handler.add(Options, _tell)


@lru_cache(maxsize=1024)
def plain(path: str) -> str:
    """An address in its plain form, so that all who look at it see the same.

    Letters, digits and the like mean the same with and without a percent sign, and several slashes the same
    as one, at the end as none: a base URL that ends in a slash is a common slip.
    """
    if _BROKEN.search(path):
        return path
    return _SLASHES.sub("/", _ESCAPE.sub(_as_itself, path)).rstrip("/") or "/"


def _as_itself(escape: re.Match[str]) -> str:
    meant = chr(int(escape[1], 16))
    return meant if meant in _PLAIN else escape[0]


def _decoded(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        text = unquote(value, errors="strict")
    except UnicodeDecodeError as error:
        raise BadRequest("An address is percent-encoded UTF-8.") from error
    if "\0" in text:
        raise BadRequest("There is a null character in the address.")
    return text


async def _tell(request: Request, error: Options) -> HTTPResponse:
    return empty(headers={"Allow": ", ".join(error.methods)})
