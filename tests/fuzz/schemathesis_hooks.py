"""Loaded by schemathesis: keeps generated requests short, and says what a schema cannot."""

from __future__ import annotations

import json
from typing import Any

import schemathesis

LONGEST = 3
"""Tokens of an answer: the box is tried, not the model."""
TELLING = ("response_format", "tools", "tool_choice", "logit_bias", "stop")
"""Fields whose values may be refused though they are of the right form: a JSON schema within that cannot be
satisfied, two tools of one name, a token the model does not have."""


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Cap what takes long, and mostly name a model that is there: all others are refused alike."""
    body = case.body
    if not isinstance(body, dict) or "model" not in body:
        return
    for key in ("max_tokens", "max_completion_tokens", "n"):
        if type(body.get(key)) is int and body[key] > LONGEST:
            body[key] = LONGEST
    positive = case.meta is not None and case.meta.generation.mode.is_positive
    if positive and len(json.dumps(body, default=str)) % 4:
        body["model"] = "shammah"


@schemathesis.check
def valid_data_is_served(context: Any, response: Any, case: Any) -> None:
    """In place of `positive_data_acceptance`: a 400 for a body of the right form has to name its reason."""
    if case.meta is None or not case.meta.generation.mode.is_positive or response.status_code != 400:
        return
    error = response.json()["error"]
    field = (error["param"] or "").partition("[")[0].partition(".")[0]
    if field in TELLING or error["code"] == "context_length_exceeded":
        return
    if "became too complex to follow" in error["message"]:
        return  # of tools or an answer's format, when it is already being answered
    if case.operation.label == "POST /v1/feedback" and field in ("query", "response", "correction"):
        return  # what was said and what should have been do not go together
    raise AssertionError(f"valid data was refused: {error}")
