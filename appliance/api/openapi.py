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

blueprint = Blueprint("openapi")
JSON = "application/json"
_ANY: dict[str, Any] = {"type": "object", "additionalProperties": True}


@dataclass(frozen=True)
class Endpoint:
    """One row of the document."""

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


ENDPOINTS = (
    Endpoint(
        "post", "/v1/chat/completions", "Answer a conversation", ChatBody, "ChatCompletion", stream=True
    ),
    Endpoint("post", "/v1/completions", "Continue a text", CompletionBody, "TextCompletion", stream=True),
    Endpoint("get", "/v1/models", "Names a request may use", answer="List"),
    Endpoint("get", "/v1/models/{model}", "One model", answer="Model", errors=(404,)),
    Endpoint("post", "/v1/feedback", "Praise, correct or criticise an answer", FeedbackBody, "Feedback"),
    Endpoint("get", "/v1/training/status", "Queue, present run, last run"),
    Endpoint("post", "/v1/training/run", "Start a run now (owner)", status=202, errors=(403, 409)),
    Endpoint("post", "/v1/training/cancel", "Stop the present run (owner)", status=202, errors=(403, 409)),
    Endpoint("get", "/v1/training/runs/{run_id}", "One run with its report", errors=(404,)),
    Endpoint(
        "delete",
        "/v1/training/examples/{example_id}",
        "Forget an example (owner)",
        answer="Forgotten",
        errors=(400, 403, 404, 409, 507),
        flags=("retrain",),
    ),
    Endpoint(
        "delete",
        "/v1/training/devices/{device}/examples",
        "Forget all that a device said (owner)",
        answer="Forgotten",
        errors=(400, 403, 404, 409, 507),
        flags=("retrain",),
    ),
    Endpoint("get", "/v1/adapters", "Known adapters", answer="List"),
    Endpoint(
        "post", "/v1/adapters/promote", "Put an adapter in service (owner)", PromoteBody, errors=(403, 404)
    ),
    Endpoint("post", "/v1/adapters/pin", "Let only persons switch (owner)", PinBody, errors=(403, 409)),
    Endpoint("post", "/v1/adapters/unpin", "Let the box switch by itself again (owner)", errors=(403,)),
    Endpoint("post", "/v1/adapters/rollback", "Take the last switch back (owner)", errors=(403, 409)),
    Endpoint("get", "/v1/storage", "What takes how much of the disk (owner)", errors=(403,)),
    Endpoint("post", "/v1/storage/tidy", "Remove what may go (owner)", errors=(403, 409)),
    Endpoint("get", "/health", "Is the serving loop alive", errors=(503,), keyed=False),
    Endpoint("get", "/ready", "Would a request be answered", errors=(503,), keyed=False),
    Endpoint("get", "/metrics", "Prometheus exposition", answer="text/plain", keyed=False),
    Endpoint("get", "/openapi.json", "This document", keyed=False),
)

_USAGE = {
    "type": "object",
    "properties": {
        name: {"type": "integer", "minimum": 0}
        for name in ("prompt_tokens", "completion_tokens", "total_tokens")
    }
    | {"prompt_tokens_details": {"type": "object", "properties": {"cached_tokens": {"type": "integer"}}}},
    "required": ["prompt_tokens", "completion_tokens", "total_tokens"],
}


def _completion(choice: dict[str, Any]) -> dict[str, Any]:
    properties = {
        "id": {"type": "string"},
        "object": {"type": "string"},
        "created": {"type": "integer"},
        "model": {"type": "string"},
        "choices": {"type": "array", "minItems": 1, "items": choice},
        "usage": _USAGE,
    }
    return {"type": "object", "properties": properties, "required": list(properties)}


def _choice(name: str, schema: dict[str, Any], logprobs: str, *reasons: str) -> dict[str, Any]:
    properties = {
        "index": {"type": "integer", "minimum": 0},
        name: schema,
        "logprobs": {"anyOf": [{"$ref": f"#/components/schemas/{logprobs}"}, {"type": "null"}]},
        "finish_reason": {"enum": ["stop", "length", *reasons]},
    }
    return {"type": "object", "properties": properties, "required": list(properties)}


def _object(optional: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required}


def _array(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


_TOKEN: dict[str, Any] = {
    "token": {"type": "string"},
    "logprob": {"type": "number"},
    "bytes": _array({"type": "integer", "minimum": 0, "maximum": 255}),
}
_ANSWERS: dict[str, dict[str, Any]] = {
    "Object": _ANY,
    "ChatCompletion": _completion(
        _choice("message", {"$ref": "#/components/schemas/AssistantMessage"}, "ChatLogprobs", "tool_calls")
    ),
    "AssistantMessage": _object(
        ("tool_calls",),
        role={"const": "assistant"},
        content={"type": ["string", "null"]},
        refusal={"type": "null"},
        tool_calls=_array({"$ref": "#/components/schemas/Call"}),
    ),
    "ChatLogprobs": _object(
        content=_array(_object(**_TOKEN, top_logprobs=_array(_object(**_TOKEN)))), refusal={"type": "null"}
    ),
    "TextCompletion": _completion(_choice("text", {"type": "string"}, "TextLogprobs")),
    "TextLogprobs": _object(
        tokens=_array({"type": "string"}),
        token_logprobs=_array({"type": "number"}),
        top_logprobs=_array({"type": "object", "additionalProperties": {"type": "number"}}),
        text_offset=_array({"type": "integer", "minimum": 0}),
    ),
    "Model": {
        "type": "object",
        "properties": {
            "id": {"type": "string"},
            "object": {"const": "model"},
            "created": {"type": "integer"},
            "owned_by": {"type": "string"},
        },
        "required": ["id", "object", "created", "owned_by"],
    },
    "List": {
        "type": "object",
        "properties": {"object": {"const": "list"}, "data": {"type": "array", "items": _ANY}},
        "required": ["object", "data"],
    },
    "Feedback": {
        "type": "object",
        "properties": {
            "id": {"type": "string"},
            "object": {"const": "feedback"},
            "kind": {"enum": ["praise", "correction", "critique"]},
            "state": {"type": "string"},
            "weight": {"type": "number"},
        },
        "required": ["id", "object", "kind", "state", "weight"],
    },
    "Forgotten": _object(
        object={"const": "training.forgotten"},
        examples=_array({"type": "string"}),
        completions={"type": "integer", "minimum": 0},
        adapters=_array({"type": "string"}),
        in_service={"type": ["string", "null"]},
        retrained={"type": "boolean"},
        requeued={"type": "integer", "minimum": 0},
        current={"type": ["string", "null"]},
    ),
    "Error": {
        "type": "object",
        "properties": {
            "error": {
                "type": "object",
                "properties": {
                    "message": {"type": "string"},
                    "type": {"type": "string"},
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "null"]},
                },
                "required": ["message", "type", "param", "code"],
            }
        },
        "required": ["error"],
    },
}


@cache
def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    bodies = [endpoint.body for endpoint in ENDPOINTS if endpoint.body]
    _, definitions = models_json_schema(
        [(body, "validation") for body in bodies], ref_template="#/components/schemas/{model}"
    )
    paths: dict[str, Any] = {}
    for endpoint in ENDPOINTS:
        paths.setdefault(endpoint.path, {})[endpoint.method] = _operation(endpoint)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Shammah", "version": __version__, "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {
            "schemas": {**definitions["$defs"], **_ANSWERS},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


@blueprint.get("/openapi.json")
async def serve(request: Request) -> HTTPResponse:
    """The document."""
    return json_response(document())


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    if "/" in endpoint.answer:
        content: dict[str, Any] = {endpoint.answer: {"schema": {"type": "string"}}}
    else:
        content = {JSON: {"schema": _ref(endpoint.answer)}}
    if endpoint.stream:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    errors = set(endpoint.errors)
    if endpoint.keyed:
        errors |= {401, 429} if endpoint.method == "post" else {401}
    if endpoint.body:
        errors |= {400, 413}
    if endpoint.stream:
        errors |= {403, 404, 503}
    responses: dict[str, Any] = {str(endpoint.status): {"description": "Done", "content": content}}
    for status in sorted(errors):
        schema = _ref("Object" if not endpoint.keyed else "Error")
        responses[str(status)] = {"description": "Error", "content": {JSON: {"schema": schema}}}
    name = (
        endpoint.path.strip("/").replace("/", "_").replace(".", "_").translate({ord(c): None for c in "{}"})
    )
    operation: dict[str, Any] = {
        "operationId": f"{endpoint.method}_{name}",
        "summary": endpoint.summary,
        "responses": responses,
        "security": [{"key": []}, {}] if endpoint.keyed else [{}],
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


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}
