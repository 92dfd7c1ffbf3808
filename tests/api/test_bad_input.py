"""Every way to be wrong gets OpenAI's error object, the right status and a name for the fault."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from daemons import Daemon

CHAT = "/v1/chat/completions"
GOOD: dict[str, Any] = {
    "model": "shammah",
    "messages": [{"role": "user", "content": "Hi"}],
    "max_tokens": 2,
}
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "time"}}
CALL: dict[str, Any] = {"id": "call_1", "type": "function", "function": {"name": "time", "arguments": "{}"}}


def tool(**changes: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "time", **changes}}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def schema_format(schema: dict[str, Any], name: str = "answer") -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema}}


def error(response: Any) -> dict[str, Any]:
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    return dict(body["error"])


@pytest.mark.parametrize("body", [b"", b"{", b"[1, 2", b"\xff\xfe", b'{"model": NaN}', b"[" * 100_000])
def test_malformed_json(daemon: Daemon, body: bytes) -> None:
    response = daemon.post(CHAT, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert error(response)["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "wizard", "content": "Hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"stream": "yes"}, "stream"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"seed": -1}, "seed"),
        ({"n": 0}, "n"),
        ({"n": 99}, "n"),
        ({"n": True}, "n"),
        ({"min_p": 2}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"logprobs": 3}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"word": 1}}, "logit_bias"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": schema_format({"type": "wizard"})}, "response_format"),
        ({"response_format": schema_format({"type": "object", "not": {}})}, "response_format"),
        ({"response_format": schema_format({"$ref": "https://example.com/"})}, "response_format"),
        ({"response_format": schema_format({}, name="two words")}, "response_format"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tools": [tool(parameters={"type": "array"})]}, "tools"),
        (
            {"tools": [tool(strict=True, parameters={"properties": {"a": {"type": "wizard"}}})]},
            "tools[0].function.parameters",
        ),
        ({"tools": [tool(name="not a name")]}, "tools"),
        ({"tools": [TOOL], "tool_choice": "perhaps"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": named("date")}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"functions": [{"name": "time"}]}, "functions"),
        ({"messages": [{"role": "tool", "content": "12:30"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "assistant"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "", "tool_calls": [CALL]}]}, "messages[0].tool_calls"),
        ({"presence_penalty": 9}, "presence_penalty"),
        ({"model": 5}, "model"),
    ],
)
def test_wrong_values_name_their_field(daemon: Daemon, change: dict[str, Any], param: str) -> None:
    response = daemon.post(CHAT, json={**GOOD, **change})
    assert response.status_code == 400
    found = error(response)
    assert found["type"] == "invalid_request_error"
    assert (found["param"] or "").startswith(param)


@pytest.mark.parametrize("value", [6, -1, True, "3"])
def test_logprobs_of_plain_completions(daemon: Daemon, value: object) -> None:
    body = {"model": "shammah", "prompt": "One,", "max_tokens": 2, "logprobs": value}
    response = daemon.post("/v1/completions", json=body)
    assert response.status_code == 400
    assert error(response)["param"] == "logprobs"


def test_missing_model(daemon: Daemon) -> None:
    response = daemon.post(CHAT, json={"messages": GOOD["messages"]})
    assert response.status_code == 400
    assert error(response)["param"] == "model"


def test_unknown_model(daemon: Daemon) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        daemon.client().chat.completions.create(model="gpt-4", messages=GOOD["messages"])
    assert caught.value.code == "model_not_found"
    assert "shammah" in str(caught.value)


def test_a_prompt_of_a_megabyte_overflows_the_context(daemon: Daemon) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        daemon.client().chat.completions.create(
            model="shammah", messages=[{"role": "user", "content": "word " * 200_000}]
        )
    assert caught.value.code == "context_length_exceeded"
    assert "8192" in str(caught.value)


def test_a_body_over_the_limit(daemon: Daemon) -> None:
    response = daemon.post(CHAT, content=b" " * 9_000_000)
    assert response.status_code == 413
    assert error(response)["code"] == "request_too_large"


def test_unknown_url_and_method(daemon: Daemon) -> None:
    response = daemon.get("/v1/nothing")
    assert response.status_code == 404
    assert error(response)["code"] == "unknown_url"
    response = daemon.get(CHAT)
    assert response.status_code == 405
    assert error(response)["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"weight": "huge"}, "weight"),
        ({"weight": -1}, "weight"),
        ({"weight": 0}, "weight"),
        ({"rating": "sideways"}, "rating"),
        ({"query": 5}, "query"),
        ({"correction": ""}, "correction"),
        ({"correction": "4"}, "correction"),
    ],
)
def test_bad_feedback(daemon: Daemon, body: dict[str, Any], param: str) -> None:
    response = daemon.post("/v1/feedback", json={"query": "2+2?", "response": "4", **body})
    assert response.status_code == 400
    assert error(response)["param"] == param


def test_feedback_on_nothing(daemon: Daemon) -> None:
    assert daemon.post("/v1/feedback", json={}).status_code == 400
    assert daemon.post("/v1/feedback", json={"completion_id": "chatcmpl-none"}).status_code == 404


@pytest.mark.parametrize("name", ["../../etc/passwd", "adapter_none", "a/b", "", "..", "x" * 500])
def test_promoting_what_is_not_there(daemon: Daemon, name: str) -> None:
    response = daemon.post("/v1/adapters/promote", json={"name": name})
    assert response.status_code in (400, 404)
    error(response)
    assert daemon.get("/ready").json()["adapter"] is None


def test_nothing_above_broke_the_box(daemon: Daemon) -> None:
    assert daemon.ask("Name three colours.")
    assert daemon.get("/health").status_code == 200
