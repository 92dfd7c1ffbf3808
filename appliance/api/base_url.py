"""Who has a wrong base URL is told so: to a program, the console's page at the same address is no answer."""

from __future__ import annotations

from typing import Any

from sanic import Request
from sanic.exceptions import NotFound

from appliance.network.routes import Routes

ROOT = "/v1"
_RULE = f"The API is at {ROOT}: the base URL of a client ends in {ROOT}"


class Misplaced(NotFound):
    """A program asks the console for what the API has."""


def for_a_person(request: Request) -> bool:
    """Whether the answer is going to be read as a page."""
    return "text/html" in request.headers.get("accept", "")


def explain(path: str) -> str:
    """Why nothing is at an address, to who writes programs."""
    if path == ROOT:
        return (
            f"{ROOT} is where the API begins: what there is below it is said in /openapi.json. A client "
            f"whose base URL ends in {ROOT} asks for {ROOT}/models or {ROOT}/chat/completions."
        )
    if path.startswith(f"{ROOT}{ROOT}"):
        return f"There is nothing at {path}: {ROOT} stands in it twice. {_RULE}, once."
    if path.startswith(f"{ROOT}/"):
        return f"There is nothing at {path}. /openapi.json says what there is."
    return f"There is nothing at {path}. {_RULE}."


async def look(request: Request, **_: Any) -> None:
    """Sanic's signal handler, once the route is known.

    Raises:
        Misplaced: the route is the console's, and a program means the API's of the same name.
    """
    path = request.path
    if path.startswith(f"{ROOT}/") or not _from_program(request):
        return
    routes = request.app.router
    assert isinstance(routes, Routes)
    method = "GET" if request.method == "HEAD" else request.method
    if method in routes.methods(ROOT + path):
        raise Misplaced(explain(path))


def _from_program(request: Request) -> bool:
    """Whether a client of the API asks: it has a key, or wants JSON. Who takes anything may be a person."""
    headers = request.headers
    if for_a_person(request) or "hx-request" in headers:
        return False
    return "authorization" in headers or "application/json" in headers.get("accept", "")
