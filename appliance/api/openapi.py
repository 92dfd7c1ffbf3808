"""`GET /openapi.json`: the API described from the models that validate it.

Written from one table, since sanic-ext's generator brings a documentation page that loads scripts
from outside. A test compares the table with the routes, both ways.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from sanic import Blueprint, HTTPResponse, Request
from sanic import json as json_response

from appliance import __version__
from appliance.api.schemas import ChatBody, CompletionBody, FeedbackBody, PinBody, PromoteBody
from appliance.api.shapes import SHAPES
from appliance.origin import trusted_loopback

blueprint = Blueprint("openapi")
JSON = "application/json"


@dataclass(frozen=True)
class Link:
    """Where something in an answer leads.

    Attributes:
        to: the operation.
        value: a runtime expression that finds it in the answer.
        parameter: of the operation, which takes it.
        field: of its body, which takes it.
    """

    to: str
    value: str
    parameter: str = ""
    field: str = ""


@dataclass(frozen=True)
class Endpoint:
    """One row of the document.

    Attributes:
        errors: statuses beyond those that follow from the rest.
        keyed: whether somebody from elsewhere needs a key.
        flags: query parameters that are true or false.
    """

    method: str
    path: str
    summary: str
    body: type[BaseModel] | None = None
    answer: str = "Object"
    status: int = 200
    stream: bool = False
    errors: tuple[int, ...] = ()
    keyed: bool = True
    flags: tuple[str, ...] = ()
    links: tuple[Link, ...] = ()


_FIRST = "$response.body#/data/0/"
_RATE = Link("post_v1_feedback", "$response.body#/id", field="completion_id")
_FORGET = (400, 403, 404, 409, 507)
_SWITCH = (403, 404, 409, 503, 507)
ENDPOINTS = (
    Endpoint(
        "post",
        "/v1/chat/completions",
        "Answer a conversation",
        ChatBody,
        "ChatCompletion",
        stream=True,
        links=(_RATE,),
    ),
    Endpoint("post", "/v1/completions", "Continue a text", CompletionBody, "TextCompletion", stream=True),
    Endpoint(
        "get",
        "/v1/models",
        "Names a request may use",
        answer="List",
        links=(Link("get_v1_models_model", _FIRST + "id", parameter="model"),),
    ),
    Endpoint("get", "/v1/models/{model}", "One model", answer="Model", errors=(404,)),
    Endpoint(
        "post",
        "/v1/feedback",
        "Praise, correct or criticise an answer",
        FeedbackBody,
        "Feedback",
        errors=(404, 507),
        links=(Link("delete_v1_training_examples_example_id", "$response.body#/id", parameter="example_id"),),
    ),
    Endpoint("get", "/v1/training/status", "Queue, present run, last run"),
    Endpoint(
        "post",
        "/v1/training/run",
        "Start a run now (owner)",
        status=202,
        errors=(403, 409, 503, 507),
        links=(Link("get_v1_training_runs_run_id", "$response.body#/id", parameter="run_id"),),
    ),
    Endpoint("post", "/v1/training/cancel", "Stop the present run (owner)", status=202, errors=(403, 409)),
    Endpoint("get", "/v1/training/runs/{run_id}", "One run with its report", errors=(404,)),
    Endpoint(
        "delete",
        "/v1/training/examples/{example_id}",
        "Forget an example (owner)",
        answer="Forgotten",
        errors=_FORGET,
        flags=("retrain",),
    ),
    Endpoint(
        "delete",
        "/v1/training/devices/{device}/examples",
        "Forget all that a device said (owner)",
        answer="Forgotten",
        errors=_FORGET,
        flags=("retrain",),
    ),
    Endpoint(
        "get",
        "/v1/adapters",
        "Known adapters",
        answer="List",
        links=(
            Link("post_v1_adapters_promote", _FIRST + "name", field="name"),
            Link("post_v1_adapters_pin", _FIRST + "name", field="name"),
        ),
    ),
    Endpoint(
        "post", "/v1/adapters/promote", "Put an adapter in service (owner)", PromoteBody, errors=_SWITCH
    ),
    Endpoint("post", "/v1/adapters/pin", "Let only persons switch (owner)", PinBody, errors=(403, 409, 507)),
    Endpoint("post", "/v1/adapters/unpin", "Let the box switch by itself again (owner)", errors=(403, 507)),
    Endpoint("post", "/v1/adapters/rollback", "Take the last switch back (owner)", errors=_SWITCH),
    Endpoint("get", "/v1/storage", "What takes how much of the disk (owner)", errors=(403,)),
    Endpoint("post", "/v1/storage/tidy", "Remove what may go (owner)", errors=(403, 409)),
    Endpoint("get", "/health", "Is the serving loop alive", errors=(503,), keyed=False),
    Endpoint("get", "/ready", "Would a request be answered", errors=(503,), keyed=False),
    Endpoint("get", "/metrics", "Prometheus exposition", answer="text/plain", errors=(401,), keyed=False),
    Endpoint("get", "/openapi.json", "This document", keyed=False),
)

_HEADERS: dict[int, dict[str, Any]] = {
    401: {"WWW-Authenticate": {"schema": {"type": "string"}, "required": True}},
    429: {
        "Retry-After": {
            "description": "In so many seconds it may go.",
            "schema": {"type": "integer", "minimum": 0},
            "required": True,
        }
    },
}


@cache
def document(keyless: bool = True) -> dict[str, Any]:
    """The OpenAPI 3.1 document.

    Args:
        keyless: for somebody who needs no key.
    """
    bodies = [endpoint.body for endpoint in ENDPOINTS if endpoint.body]
    _, definitions = models_json_schema(
        [(body, "validation") for body in bodies], ref_template="#/components/schemas/{model}"
    )
    paths: dict[str, Any] = {}
    for endpoint in ENDPOINTS:
        paths.setdefault(endpoint.path, {})[endpoint.method] = _operation(endpoint, keyless)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Shammah", "version": __version__, "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {
            "schemas": {**definitions["$defs"], **SHAPES},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


@blueprint.get("/openapi.json")
async def serve(request: Request) -> HTTPResponse:
    """The document, for who asks: from elsewhere a key is needed that this machine does without."""
    return json_response(document(trusted_loopback(request.ip, request.headers)))


def _operation(endpoint: Endpoint, keyless: bool) -> dict[str, Any]:
    if "/" in endpoint.answer:
        content: dict[str, Any] = {endpoint.answer: {"schema": {"type": "string"}}}
    else:
        content = {JSON: {"schema": _ref(endpoint.answer)}}
    if endpoint.stream:
        # Before OpenAPI 3.2 there is no other way to say it: the schema of each event.
        content["text/event-stream"] = {"schema": _ref(f"{endpoint.answer}Event")}
    done: dict[str, Any] = {"description": "Done", "content": content}
    if endpoint.links:
        done["links"] = {link.to: _link(link) for link in endpoint.links}
    responses: dict[str, Any] = {str(endpoint.status): done}
    for status in sorted(_errors(endpoint)):
        # A supervisor wants to know how it is, and gets it in the form of good news.
        schema = _ref("Object" if status == 503 and not endpoint.keyed else "Error")
        responses[str(status)] = {"description": "Error", "content": {JSON: {"schema": schema}}}
        if headers := _HEADERS.get(status):
            responses[str(status)]["headers"] = headers
    operation: dict[str, Any] = {
        "operationId": _name(endpoint),
        "summary": endpoint.summary,
        "responses": responses,
        "security": [{"key": []}] * endpoint.keyed + [{}] * (keyless or not endpoint.keyed),
    }
    if endpoint.body:
        schema = _ref(endpoint.body.__name__)
        operation["requestBody"] = {"required": True, "content": {JSON: {"schema": schema}}}
    parameters: list[dict[str, Any]] = [
        {"name": flag, "in": "query", "schema": {"type": "boolean", "default": False}}
        for flag in endpoint.flags
    ]
    if "{" in endpoint.path:
        parameter = endpoint.path[endpoint.path.index("{") + 1 : endpoint.path.index("}")]
        parameters.append({"name": parameter, "in": "path", "required": True, "schema": {"type": "string"}})
    if parameters:
        operation["parameters"] = parameters
    return operation


def _errors(endpoint: Endpoint) -> set[int]:
    """Every status that it may answer with but the good one."""
    errors = {*endpoint.errors, 400, 431}  # of a head that is none
    errors |= {403}  # of a box that is not set up, and asked from elsewhere
    if endpoint.keyed:
        errors |= {401, 429} if endpoint.method == "post" else {401}
    if endpoint.method != "get":  # whose bodies are read
        errors |= {400, 408, 413}
    if endpoint.stream:
        errors |= {404, 503}
    return errors


def _link(link: Link) -> dict[str, Any]:
    takes = {"parameters": {link.parameter: link.value}} if link.parameter else {}
    return {"operationId": link.to, **(takes or {"requestBody": {link.field: link.value}})}


def _name(endpoint: Endpoint) -> str:
    """The operation's id, from its method and path."""
    path = endpoint.path.strip("/").replace("/", "_").replace(".", "_")
    return f"{endpoint.method}_{path}".translate({ord(c): None for c in "{}"})


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}
