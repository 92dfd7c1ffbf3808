"""What the endpoints answer with, as JSON schemas: the part of the OpenAPI document that is no model."""

from __future__ import annotations

from typing import Any

_ANY: dict[str, Any] = {"type": "object", "additionalProperties": True}
_USAGE = {
    "type": "object",
    "properties": {
        name: {"type": "integer", "minimum": 0}
        for name in ("prompt_tokens", "completion_tokens", "total_tokens")
    }
    | {"prompt_tokens_details": {"type": "object", "properties": {"cached_tokens": {"type": "integer"}}}},
    "required": ["prompt_tokens", "completion_tokens", "total_tokens"],
}


def _object(optional: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required}


def _array(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def _completion(kind: str, choice: dict[str, Any]) -> dict[str, Any]:
    return _object(**_head(kind), choices={**_array(choice), "minItems": 1}, usage=_USAGE)


def _chunk(kind: str, choice: dict[str, Any]) -> dict[str, Any]:
    """Of a stream: the choices that have grown. The one with the usage has none."""
    return _object(("usage",), **_head(kind), choices=_array(choice), usage=_or_null(_USAGE))


def _event(chunk: str) -> dict[str, Any]:
    """Of a stream: a chunk, what has gone wrong on the way, or the end."""
    parsed = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"anyOf": [_ref(chunk), _ref("Error")]},
    }
    return _object(data={"anyOf": [{"const": "[DONE]"}, parsed]})


def _head(kind: str) -> dict[str, Any]:
    return {
        "id": {"type": "string"},
        "object": {"const": kind},
        "created": {"type": "integer"},
        "model": {"type": "string"},
    }


def _choice(name: str, schema: dict[str, Any], logprobs: str, *reasons: str | None) -> dict[str, Any]:
    return _object(
        (),
        index={"type": "integer", "minimum": 0},
        logprobs=_or_null(_ref(logprobs)),
        finish_reason={"enum": ["stop", "length", *reasons]},
        **{name: schema},
    )


_TOKEN: dict[str, Any] = {
    "token": {"type": "string"},
    "logprob": {"type": "number"},
    "bytes": _array({"type": "integer", "minimum": 0, "maximum": 255}),
}
SHAPES: dict[str, dict[str, Any]] = {
    "Object": _ANY,
    "ChatCompletion": _completion(
        "chat.completion", _choice("message", _ref("AssistantMessage"), "ChatLogprobs", "tool_calls")
    ),
    "ChatCompletionEvent": _event("ChatCompletionChunk"),
    "ChatCompletionChunk": _chunk(
        "chat.completion.chunk",
        _choice("delta", _ref("AssistantDelta"), "ChatLogprobs", "tool_calls", None),
    ),
    "AssistantDelta": _object(
        ("role", "content", "tool_calls"),
        role={"const": "assistant"},
        content={"type": "string"},
        tool_calls=_array(
            _object(
                ("id", "type"),
                index={"type": "integer", "minimum": 0},
                id={"type": "string"},
                type={"const": "function"},
                function=_object(("name",), name={"type": "string"}, arguments={"type": "string"}),
            )
        ),
    ),
    "AssistantMessage": _object(
        ("tool_calls",),
        role={"const": "assistant"},
        content={"type": ["string", "null"]},
        refusal={"type": "null"},
        tool_calls=_array(_ref("Call")),
    ),
    "ChatLogprobs": _object(
        content=_array(_object(**_TOKEN, top_logprobs=_array(_object(**_TOKEN)))), refusal={"type": "null"}
    ),
    "TextCompletion": _completion("text_completion", _choice("text", {"type": "string"}, "TextLogprobs")),
    "TextCompletionEvent": _event("TextCompletionChunk"),
    "TextCompletionChunk": _chunk(
        "text_completion", _choice("text", {"type": "string"}, "TextLogprobs", None)
    ),
    "TextLogprobs": _object(
        tokens=_array({"type": "string"}),
        token_logprobs=_array({"type": "number"}),
        top_logprobs=_array({"type": "object", "additionalProperties": {"type": "number"}}),
        text_offset=_array({"type": "integer", "minimum": 0}),
    ),
    "Model": _object(
        id={"type": "string"},
        object={"const": "model"},
        created={"type": "integer"},
        owned_by={"type": "string"},
    ),
    "List": _object(object={"const": "list"}, data=_array(_ANY)),
    "Feedback": _object(
        id={"type": "string"},
        object={"const": "feedback"},
        kind={"enum": ["praise", "correction", "critique"]},
        state={"type": "string"},
        weight={"type": "number"},
    ),
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
    "Error": _object(
        error=_object(
            message={"type": "string"},
            type={"type": "string"},
            param={"type": ["string", "null"]},
            code={"type": ["string", "null"]},
        )
    ),
}
