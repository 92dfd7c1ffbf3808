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
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
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
