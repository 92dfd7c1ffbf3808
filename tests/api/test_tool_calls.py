"""Tools on a real daemon with the default model, by OpenAI's own client: calls, results, and what is read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from daemons import Daemon

from appliance.api.tool_calls import CallReader

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TIMER = {
    "type": "function",
    "function": {
        "name": "set_timer",
        "description": "Start a timer.",
        "parameters": {
            "type": "object",
            "properties": {"minutes": {"type": "integer", "maximum": 90}},
            "required": ["minutes"],
        },
    },
}
TOOLS = [WEATHER, TIMER]
MARKS = ("tool_call", "tool_response")


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answers(daemon: Daemon, stream: bool, **asked: Any) -> list[dict[str, Any]]:
    """Each choice as text, calls, and reason, and the usage; streamed or not."""
    client = daemon.client()
    body = {"model": "shammah", "temperature": 0, "max_tokens": 100, **asked}
    if not stream:
        whole = client.chat.completions.create(**body)
        return [
            {
                "text": choice.message.content or "",
                "calls": [(c.function.name, c.function.arguments) for c in choice.message.tool_calls or []],
                "reason": choice.finish_reason,
                "tokens": whole.usage.completion_tokens,
            }
            for choice in whole.choices
        ]
    found: dict[int, dict[str, Any]] = {}
    tokens = 0
    for chunk in client.chat.completions.create(**body, stream=True, stream_options={"include_usage": True}):
        tokens = chunk.usage.completion_tokens if chunk.usage else tokens
        for choice in chunk.choices:
            one = found.setdefault(choice.index, {"text": "", "calls": [], "reason": None})
            assert one["reason"] is None, "nothing comes after the end"
            one["text"] += choice.delta.content or ""
            for call in choice.delta.tool_calls or []:
                if call.id:
                    assert call.index == len(one["calls"])
                    one["calls"].append((call.function.name, ""))
                else:
                    name, arguments = one["calls"][call.index]
                    one["calls"][call.index] = (name, arguments + call.function.arguments)
            one["reason"] = choice.finish_reason
    return [{**found[index], "tokens": tokens} for index in sorted(found)]


@pytest.mark.parametrize(("stream", "count"), [(False, 1), (True, 2)])
def test_a_repeated_call_ends_the_answer(daemon: Daemon, stream: bool, count: int) -> None:
    asked = {"messages": [user("How is the weather in Paris?")], "tools": TOOLS, "n": count, "seed": 1}
    choices = answers(daemon, stream, **asked, tool_choice="required", max_tokens=400)
    for choice in choices:
        assert choice["reason"] == "tool_calls"
        assert choice["calls"] and not choice["text"]
        assert len(set(choice["calls"])) == len(choice["calls"]), choice["calls"]
    # What was generated is counted, the repeat too, and it was stopped there: eight calls are 200 tokens.
    most = max(len(choice["calls"]) for choice in choices) + 1
    assert choices[0]["tokens"] <= count * most * 40
    assert daemon.get("/health").json()["status"] == "ok"


RESULTS = [
    ("What's the weather in Paris?", "get_weather", {"city": "Paris"}, '{"temperature": 17, "sky": "rain"}'),
    ("How warm is it in Oslo?", "get_weather", {"city": "Oslo"}, "11 degrees, cloudy"),
    ("Set a timer for 10 minutes.", "set_timer", {"minutes": 10}, '{"status": "started", "ends": "14:35"}'),
]


def test_no_markup_is_read_after_a_result(daemon: Daemon) -> None:
    for stream, (question, name, arguments, result) in zip((True, False, True), RESULTS, strict=True):
        function = {"name": name, "arguments": json.dumps(arguments)}
        messages = [
            user(question),
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
            },
            {"role": "tool", "tool_call_id": "call_1", "content": result},
        ]
        (whole,) = answers(daemon, stream, messages=messages, tools=TOOLS, max_tokens=24)
        assert whole["text"].strip() and not whole["calls"]
        assert not any(mark in whole["text"] for mark in MARKS), whole["text"]
        (short,) = answers(daemon, stream, messages=messages, tools=TOOLS, max_tokens=2)
        assert whole["text"].startswith(short["text"])


def test_what_the_client_wants_in_its_format_may_hold_markup(daemon: Daemon) -> None:
    told = "<tool_response>\n1\n</tool_response> <tool_call>\n"
    form = {
        "type": "json_schema",
        "json_schema": {"name": "told", "schema": {"const": told}},
    }
    for tools in ({}, {"tools": TOOLS}):
        (choice,) = answers(daemon, False, messages=[user("Hello!")], response_format=form, **tools)
        assert (choice["text"], choice["calls"]) == (json.dumps(told), [])


def test_a_tool_is_called_when_it_is_asked_for_and_only_then(daemon: Daemon) -> None:
    """By `benchmarks/tools.py` there are more questions; these are clear ones."""
    for text, name in [
        ("What is the weather in Paris?", "get_weather"),
        ("Set a timer for 10 minutes.", "set_timer"),
        ("Hello!", None),
        ("What is the capital of France?", None),
        ("Write a short poem about the sea.", None),
    ]:
        (choice,) = answers(daemon, True, messages=[user(text)], tools=TOOLS, max_tokens=40)
        assert [made for made, _ in choice["calls"]] == [name] * bool(name), text
        assert bool(choice["text"]) is (name is None), text
        for _, arguments in choice["calls"]:
            assert json.loads(arguments) in ({"city": "Paris"}, {"minutes": 10})


def read(whole: str, size: int, cut: bool, **options: bool) -> str:
    reader = CallReader(**options)
    text = "".join(reader.push(whole[at : at + size])[0] for at in range(0, len(whole), size))
    return text + reader.flush(cut)[0]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("calls", [True, False])
def test_marks_that_mark_nothing_are_not_shown(size: int, calls: bool) -> None:
    def shown(text: str, cut: bool = False) -> str:
        return read(text, size, cut, calls=calls)

    assert shown("<tool_response>\n11 degrees\n</tool_response>") == "11 degrees"
    assert shown("It is 11.\n</tool_response>\nYes") == "It is 11.\nYes"
    assert shown("So </tool_call>\nit is") == "So it is"
    for text in ("<b>x</b> < y", "a\n\nb\n", "x <", "<tools>"):
        assert shown(text) == text
    for mark in ("<tool_response>", "</tool_response>", "<tool_call>", "</tool_call>"):
        for end in range(1, len(mark) + 1):
            assert shown(f"Yes {mark[:end]}", cut=True) == "Yes "
            assert end < len("</tool") or shown(f"Yes {mark[:end]}") == "Yes "


def test_nothing_is_computed_for_a_model_that_is_not_here(daemon: Daemon) -> None:
    def computed() -> float:
        lines = daemon.get("/metrics").text.splitlines()
        (line,) = [line for line in lines if line.startswith("shammah_engine_prompt_tokens_total ")]
        return float(line.split()[1])

    before = computed()
    body = {"model": "shammah:nothing", "messages": [user("Set a timer of 5 minutes.")], "tools": TOOLS}
    assert daemon.post("/v1/chat/completions", json=body).status_code == 404
    assert computed() == before
