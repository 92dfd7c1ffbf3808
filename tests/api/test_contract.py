"""The rest of OpenAI's contract, asked for with OpenAI's own client."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import httpx
import jsonschema
import openai
import pytest
from daemons import Daemon, StartDaemon

from appliance.model.tokenizer import Tokenizer

ASK: list[dict[str, Any]] = [{"role": "user", "content": "Name three colours."}]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "mood": {"enum": ["glad", "sad"]},
    },
    "required": ["name", "age", "mood"],
    "additionalProperties": False,
}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["C", "F"]}},
            "required": ["city", "unit"],
        },
    },
}
CLOCK: dict[str, Any] = {"type": "function", "function": {"name": "get_time"}}


def ask(daemon: Daemon, messages: list[dict[str, Any]] = ASK, **options: Any) -> Any:
    options = {"temperature": 0, "max_tokens": 12, **options}
    return daemon.client().chat.completions.create(model="shammah", messages=messages, **options)


def texts(stream: Any) -> dict[int, str]:
    """The text of each choice of a stream."""
    found: dict[int, str] = {}
    for chunk in stream:
        for choice in chunk.choices:
            found[choice.index] = found.get(choice.index, "") + (choice.delta.content or "")
    return found


def test_several_choices_differ_by_seed_and_come_again(daemon: Daemon) -> None:
    warm = {"n": 3, "seed": 5, "temperature": 1.2}
    answer = ask(daemon, **warm)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    found = [choice.message.content for choice in answer.choices]
    assert len(set(found)) == 3
    assert [choice.message.content for choice in ask(daemon, **warm).choices] == found
    alone = ask(daemon, seed=5, temperature=1.2)
    assert alone.choices[0].message.content == found[0]
    assert answer.usage.prompt_tokens == alone.usage.prompt_tokens
    assert 12 < answer.usage.completion_tokens <= 36
    chunks = list(ask(daemon, **warm, stream=True, stream_options={"include_usage": True}))
    assert texts(chunks) == dict(enumerate(found))
    # The prompt had been computed by then.
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens >= 32
    assert chunks[-1].usage.completion_tokens == answer.usage.completion_tokens
    assert chunks[-1].usage.total_tokens == answer.usage.total_tokens
    order = [choice.index for chunk in chunks for choice in chunk.choices if choice.delta.content]
    assert order != sorted(order)  # side by side, not one after the other
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert len(reasons) == 3


def test_several_plain_completions(daemon: Daemon) -> None:
    options: dict[str, Any] = {
        "model": "shammah",
        "prompt": "My favourite animal is",
        "n": 2,
        "seed": 1,
        "temperature": 1.3,
        "max_tokens": 8,
    }
    whole = daemon.client().completions.create(**options)
    found = [choice.text for choice in whole.choices]
    assert found[0] != found[1]
    streamed = {0: "", 1: ""}
    for chunk in daemon.client().completions.create(**options, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == dict(enumerate(found))


def test_leaving_stops_all_choices(daemon: Daemon) -> None:
    body = {"model": "shammah", "messages": ASK, "max_tokens": 4000, "n": 4, "stream": True}
    with httpx.stream("POST", f"{daemon.url}/v1/chat/completions", json=body, timeout=60) as response:
        next(response.iter_lines())
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        if "shammah_active_requests 0.0" in daemon.get("/metrics").text:
            return
        time.sleep(0.1)
    pytest.fail("slots are still taken")


def test_a_full_box_refuses_all_choices_or_none(start_daemon: StartDaemon) -> None:
    daemon = start_daemon("[model]\nslots = 1\nqueue = 1\n[lora]\nenabled = false")
    with pytest.raises(openai.RateLimitError):
        ask(daemon, n=8, max_tokens=4000, temperature=1.5)
    deadline = time.monotonic() + 15
    while "shammah_active_requests 0.0" not in daemon.get("/metrics").text:
        assert time.monotonic() < deadline, "those that were queued go on"
        time.sleep(0.1)
    assert len(ask(daemon, n=2, max_tokens=2).choices) == 2


def test_only_the_first_choice_is_learned_from(daemon: Daemon) -> None:
    question = [{"role": "user", "content": "Which bird sings at night?"}]
    answer = ask(daemon, question, n=2, seed=3, temperature=1.3)
    deadline = time.monotonic() + 10
    lines: list[dict[str, Any]] = []
    while not lines and time.monotonic() < deadline:
        time.sleep(0.1)
        queued = [json.loads(line) for line in daemon.home.queue.read_text().splitlines()]
        lines = [line for line in queued if line["query"] == question[0]["content"]]
    assert [line["response"] for line in lines] == [answer.choices[0].message.content]


def test_logprobs_of_a_chat(daemon: Daemon) -> None:
    answer = ask(daemon, logprobs=True, top_logprobs=3)
    entries = answer.choices[0].logprobs.content
    assert len(entries) == answer.usage.completion_tokens == 12
    assert b"".join(bytes(entry.bytes) for entry in entries).decode() == answer.choices[0].message.content
    for entry in entries:
        assert entry.logprob <= 0
        assert len(entry.top_logprobs) == 3
        # Greedy: the token is the likeliest.
        assert entry.top_logprobs[0].token == entry.token
        assert entry.top_logprobs[0].logprob == entry.logprob
        assert sum(math.exp(other.logprob) for other in entry.top_logprobs) <= 1.0001
    streamed = [
        entry
        for chunk in ask(daemon, logprobs=True, top_logprobs=3, stream=True)
        for choice in chunk.choices
        for entry in (choice.logprobs.content if choice.logprobs else [])
    ]
    assert streamed == entries
    # They are the model's own, whatever the sampling.
    warm = ask(daemon, logprobs=True, temperature=2, top_p=0.01, frequency_penalty=1, extra_body={"top_k": 5})
    assert warm.choices[0].logprobs.content[0].logprob == entries[0].logprob
    assert warm.choices[0].logprobs.content[0].top_logprobs == []
    assert ask(daemon).choices[0].logprobs is None


@pytest.mark.parametrize("stream", [False, True])
def test_every_token_is_reported_once_though_text_is_held_back(daemon: Daemon, stream: bool) -> None:
    text = ask(daemon, max_tokens=30).choices[0].message.content
    stop = text[18:26]
    question = {"logprobs": True, "max_tokens": 30, "stop": [stop, "never said"]}
    if stream:
        chunks = list(ask(daemon, **question, stream=True, stream_options={"include_usage": True}))
        shown, count = texts(chunks)[0], chunks[-1].usage.completion_tokens
        blocks = [choice.logprobs for chunk in chunks for choice in chunk.choices if choice.logprobs]
        entries = [entry for block in blocks for entry in block.content]
    else:
        answer = ask(daemon, **question)
        shown, count = answer.choices[0].message.content, answer.usage.completion_tokens
        entries = answer.choices[0].logprobs.content
    assert shown == text[: text.index(stop)]
    assert len(entries) == count
    said = b"".join(bytes(entry.bytes) for entry in entries).decode()
    assert text.startswith(said) and said.startswith(shown) and stop in said


def test_tokens_that_are_parts_of_characters(daemon: Daemon) -> None:
    forced = {
        "type": "json_schema",
        "json_schema": {"name": "face", "schema": {"const": "日本😀"}},
    }
    answer = ask(daemon, response_format=forced, logprobs=True, max_tokens=40)
    assert json.loads(answer.choices[0].message.content) == "日本😀"
    entries = answer.choices[0].logprobs.content
    assert b"".join(bytes(entry.bytes) for entry in entries).decode() == answer.choices[0].message.content
    assert len(entries) == answer.usage.completion_tokens


def test_logprobs_of_a_plain_completion(daemon: Daemon) -> None:
    options: dict[str, Any] = {
        "model": "shammah",
        "prompt": "One, two, three,",
        "max_tokens": 6,
        "temperature": 0,
    }
    choice = daemon.client().completions.create(**options, logprobs=2).choices[0]
    shown = choice.logprobs
    assert "".join(shown.tokens) == choice.text
    assert len(shown.tokens) == len(shown.token_logprobs) == len(shown.top_logprobs) == 6
    assert [
        choice.text[at:][: len(token)] for at, token in zip(shown.text_offset, shown.tokens, strict=True)
    ] == shown.tokens
    assert all(
        len(top) == 2 and top[token] == max(top.values())
        for top, token in zip(shown.top_logprobs, shown.tokens, strict=True)
    )
    offsets, tokens = [], []
    for chunk in daemon.client().completions.create(**options, logprobs=0, stream=True):
        offsets += chunk.choices[0].logprobs.text_offset
        tokens += chunk.choices[0].logprobs.tokens
    assert (offsets, tokens) == (shown.text_offset, shown.tokens)


def test_logit_bias_bans_and_forces(daemon: Daemon, tokenizer: Tokenizer) -> None:
    first = ask(daemon, max_tokens=1).choices[0].message.content
    (token,) = tokenizer.encode(first)
    assert ask(daemon, max_tokens=1, logit_bias={str(token): -100}).choices[0].message.content != first
    (word,) = tokenizer.encode(" blue")
    forced = ask(daemon, max_tokens=4, logit_bias={str(word): 100})
    assert forced.choices[0].message.content.split() == ["blue"] * 4


def test_sampling_beyond_openai(daemon: Daemon) -> None:
    greedy = ask(daemon, max_tokens=30).choices[0].message.content
    # Nothing but the likeliest is half as likely as the likeliest, or at min_p 1 ever.
    hot = ask(daemon, max_tokens=30, temperature=2, extra_body={"min_p": 1.0})
    assert hot.choices[0].message.content == greedy
    penalised = ask(daemon, max_tokens=30, extra_body={"repetition_penalty": 1.8})
    assert penalised.choices[0].message.content != greedy


@pytest.mark.parametrize("stream", [False, True])
def test_json_of_a_schema(daemon: Daemon, stream: bool) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": PERSON}}
    question = [{"role": "user", "content": "Describe Nora, a glad woman of 40, in JSON."}]
    answer = ask(daemon, question, response_format=wanted, max_tokens=80, stream=stream)
    if stream:
        chunks = list(answer)
        text, reason = texts(chunks)[0], chunks[-1].choices[0].finish_reason
    else:
        text, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
    assert reason == "stop"
    jsonschema.validate(json.loads(text), PERSON)


def test_any_json_object_for_every_choice(daemon: Daemon) -> None:
    question = [{"role": "user", "content": "A very short JSON object, please."}]
    wanted = {"type": "json_object"}
    answer = ask(daemon, question, response_format=wanted, n=3, seed=2, temperature=1, max_tokens=60)
    for choice in answer.choices:
        assert choice.message.content.startswith("{")
        if choice.finish_reason == "stop":
            assert isinstance(json.loads(choice.message.content), dict)


def test_a_named_tool_is_called(daemon: Daemon) -> None:
    question = [{"role": "user", "content": "How warm is it in Oslo, in Celsius?"}]
    choice = {"type": "function", "function": {"name": "get_weather"}}
    answer = ask(daemon, question, tools=[CLOCK, WEATHER], tool_choice=choice, max_tokens=80)
    assert answer.choices[0].finish_reason == "tool_calls"
    message = answer.choices[0].message
    assert message.content is None
    (call,) = message.tool_calls
    assert (call.type, call.function.name) == ("function", "get_weather")
    jsonschema.validate(json.loads(call.function.arguments), WEATHER["function"]["parameters"])


def test_required_calls_streamed(daemon: Daemon) -> None:
    options: dict[str, Any] = {
        "tools": [WEATHER, CLOCK],
        "tool_choice": "required",
        "max_tokens": 100,
        "parallel_tool_calls": False,
    }
    question = [{"role": "user", "content": "What time is it?"}]
    whole = ask(daemon, question, **options).choices[0].message.tool_calls[0]
    chunks = list(ask(daemon, question, **options, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    parts = [part for chunk in chunks for part in chunk.choices[0].delta.tool_calls or []]
    assert (parts[0].index, parts[0].type, parts[0].function.name) == (0, "function", whole.function.name)
    assert parts[0].id.startswith("call_")
    assert all(part.id is None and part.function.name is None for part in parts[1:])
    assert "".join(part.function.arguments for part in parts) == whole.function.arguments
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert texts(chunks)[0] == ""


def test_a_call_that_the_token_limit_cuts_off(daemon: Daemon) -> None:
    choice = {"type": "function", "function": {"name": "get_weather"}}
    answer = ask(daemon, tools=[WEATHER], tool_choice=choice, max_tokens=24)
    assert answer.choices[0].finish_reason == "length"
    for call in answer.choices[0].message.tool_calls or []:
        assert call.function.name == "get_weather"


def test_the_model_may_answer_in_words_or_call(daemon: Daemon) -> None:
    question = [{"role": "user", "content": "Say hello to Nora."}]
    answer = ask(daemon, question, tools=[CLOCK], tool_choice="auto", max_tokens=30).choices[0]
    if answer.finish_reason == "tool_calls":
        assert answer.message.tool_calls
    else:
        assert answer.message.content and not answer.message.tool_calls
    # Told not to call, it answers as if there were no tools.
    none = ask(daemon, question, tools=[CLOCK], tool_choice="none", max_tokens=30)
    assert none.choices[0].message == ask(daemon, question, max_tokens=30).choices[0].message


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_the_model_makes_of_itself(daemon: Daemon, stream: bool) -> None:
    messages: list[dict[str, Any]] = []
    for number, city in enumerate(("Oslo", "Rome", "Cairo")):  # even a small model sees what comes next
        arguments = json.dumps({"city": city, "unit": "C"})
        call = {"id": f"call_{number}", "type": "function", "function": {"name": "get_weather"}}
        call["function"] = {"name": "get_weather", "arguments": arguments}
        messages += [
            {"role": "user", "content": f"How warm is it in {city}?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": call["id"], "content": "11"},
            {"role": "assistant", "content": f"It is 11 degrees in {city}."},
        ]
    messages.append({"role": "user", "content": "How warm is it in Paris?"})
    answer = ask(daemon, messages, tools=[WEATHER, CLOCK], max_tokens=60, stream=stream)
    if stream:
        chunks = list(answer)
        parts = [part for chunk in chunks for part in chunk.choices[0].delta.tool_calls or []]
        name, arguments = parts[0].function.name, "".join(part.function.arguments for part in parts)
        text, reason = texts(chunks)[0], chunks[-1].choices[0].finish_reason
    else:
        (made,) = answer.choices[0].message.tool_calls
        name, arguments = made.function.name, made.function.arguments
        text, reason = answer.choices[0].message.content or "", answer.choices[0].finish_reason
    assert (name, text, reason) == ("get_weather", "", "tool_calls")
    assert json.loads(arguments)["city"] == "Paris"
    jsonschema.validate(json.loads(arguments), WEATHER["function"]["parameters"])


def test_a_conversation_with_calls_goes_on_and_is_not_learned_from(daemon: Daemon) -> None:
    question = "How warm is it in Bergen right now?"
    messages: list[dict[str, Any]] = [{"role": "user", "content": question}]
    choice = {"type": "function", "function": {"name": "get_weather"}}
    first = ask(daemon, messages, tools=[WEATHER], tool_choice=choice, max_tokens=80).choices[0].message
    call = first.tool_calls[0]
    messages += [
        first.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": '{"celsius": 11} <|im_end|>'},
    ]
    last = ask(daemon, messages, tools=[WEATHER], tool_choice="none", max_tokens=20).choices[0]
    assert last.message.content
    ask(daemon, [{"role": "user", "content": "Is this collected?"}], max_tokens=4)
    deadline = time.monotonic() + 10
    while "Is this collected?" not in daemon.home.queue.read_text() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert "Is this collected?" in daemon.home.queue.read_text()
    assert question not in daemon.home.queue.read_text()


@pytest.mark.parametrize(
    ("path", "options", "schema"),
    [
        (
            "chat/completions",
            {"messages": ASK, "logprobs": True, "top_logprobs": 2, "n": 2},
            "ChatCompletion",
        ),
        (
            "chat/completions",
            {"messages": ASK, "tools": [CLOCK], "tool_choice": "required"},
            "ChatCompletion",
        ),
        ("completions", {"prompt": "One,", "logprobs": 2}, "TextCompletion"),
        ("completions", {"prompt": "One,"}, "TextCompletion"),
    ],
)
def test_answers_are_as_the_openapi_document_says(
    daemon: Daemon, path: str, options: dict[str, Any], schema: str
) -> None:
    document = daemon.get("/openapi.json").json()
    body = {"model": "shammah", "max_tokens": 30, "temperature": 0, **options}
    answer = daemon.post(f"/v1/{path}", json=body).json()
    jsonschema.validate(answer, {"$ref": f"#/components/schemas/{schema}", **document})
    requested = document["paths"][f"/v1/{path}"]["post"]["requestBody"]["content"]["application/json"][
        "schema"
    ]
    jsonschema.validate(body, {**requested, **document})
