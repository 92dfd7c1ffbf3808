"""An answer under a grammar ends within its tokens, wherever any answer does."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import jsonschema
import numpy as np
import pytest
from schemas import random_schema

from appliance.api import tools
from appliance.api.schemas import ChatBody
from appliance.api.tool_calls import CallReader
from appliance.engine.constraint import Constraint, Grammars, json_grammar
from appliance.engine.engine import Engine
from appliance.engine.request import Delta, GenerationRequest
from appliance.engine.sampling import SamplingParams
from appliance.model.bundle import Bundle
from appliance.model.tokenizer import Tokenizer

QUESTION = "List everything you know about the sea, in as much detail as possible, as JSON."
TEXT = {"type": "string"}
LOOSE: list[dict[str, Any]] = [
    {"type": "object"},
    {"type": "array"},
    {"type": "array", "items": TEXT},
    {"type": "array", "items": {"type": "array", "items": {"type": "array", "items": TEXT}}},
    {"type": "object", "properties": {"a": TEXT, "b": TEXT, "c": TEXT}, "required": ["a", "b", "c"]},
    {"type": "object", "additionalProperties": {"type": "array", "items": TEXT}},
    {"type": "object", "properties": {"text": {"type": "string", "minLength": 40}}, "required": ["text"]},
    {"type": "array", "items": {"type": "string", "pattern": "^[A-Z][a-z ]+[.!]$"}, "minItems": 2},
    {
        "type": "object",
        "properties": {
            "title": TEXT,
            "tags": {"type": "array", "items": TEXT},
            "parts": {"type": "array", "items": {"$ref": "#/$defs/part"}, "minItems": 1},
            "rating": {"type": "number"},
        },
        "required": ["title", "tags", "parts", "rating"],
        "additionalProperties": False,
        "$defs": {
            "part": {
                "type": "object",
                "properties": {"name": TEXT, "parts": {"type": "array", "items": {"$ref": "#/$defs/part"}}},
                "required": ["name", "parts"],
                "additionalProperties": False,
            }
        },
    },
    # The short way is not the first one, and what an item opens is long.
    {
        "type": "array",
        "items": {
            "type": "object",
            "properties": {f"field {number}": TEXT for number in range(12)},
            "required": [f"field {number}" for number in range(12)],
            "additionalProperties": False,
        },
    },
]


def schema_of(number: int) -> dict[str, Any]:
    """Every fifth is one that a small model never ends."""
    return LOOSE[number // 5 % len(LOOSE)] if number % 5 == 0 else random_schema(number)


@pytest.fixture(scope="module")
def grammars(bundle: Bundle) -> Grammars:
    return Grammars(bundle)


def shortest(constraint: Constraint) -> int:
    """Tokens of the shortest answer that is known: fewer give no way out."""
    low, high = 1, 600
    while low < high:
        middle = (low + high) // 2
        if constraint.begin(middle).bound:
            high = middle
        else:
            low = middle + 1
    return low


@pytest.mark.slow
@pytest.mark.parametrize("count", [40, pytest.param(200, marks=pytest.mark.fuzz)])
async def test_every_answer_of_the_model_parses(
    engine: Engine, tokenizer: Tokenizer, grammars: Grammars, count: int
) -> None:
    prompt = tuple(tokenizer.encode_chat([{"role": "user", "content": QUESTION}]))
    places = asyncio.Semaphore(4)
    bad: list[tuple[int, int, str]] = []

    async def ask(number: int) -> None:
        schema = schema_of(number)
        constraint = await asyncio.to_thread(grammars.compile, json_grammar(schema), "response_format")
        least = shortest(constraint)
        limit = (least, least + 2, least + 10, 2 * least + 20)[number // 5 % 4]
        sampling = SamplingParams(temperature=number % 2, seed=number)
        async with places:
            request = GenerationRequest(prompt, limit, sampling, constraint=constraint)
            deltas: list[Delta] = [delta async for delta in engine.generate(request)]
        text = "".join(delta.text for delta in deltas)
        assert deltas[-1].completion_tokens <= limit
        try:
            assert deltas[-1].finish_reason == "stop"
            jsonschema.Draft202012Validator(schema).validate(json.loads(text))
        except (AssertionError, ValueError, jsonschema.ValidationError):
            bad.append((number, limit, text))

    await asyncio.gather(*(ask(number) for number in range(count)))
    print(f"\n{count - len(bad)} of {count} answers parse", end="")
    assert bad == []


def test_a_tree_has_a_way_out(grammars: Grammars) -> None:
    """Beside an object that goes on and on there is null."""
    leaf = {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}
    node = {
        "type": "object",
        "properties": {"text": TEXT, "left": leaf, "right": leaf},
        "required": ["text", "left", "right"],
        "additionalProperties": False,
    }
    schema = {"$ref": "#/$defs/node", "$defs": {"node": node}}
    constraint = grammars.compile(json_grammar(schema), "response_format")
    assert constraint.begin(40).bound


@pytest.mark.parametrize(
    "form", ["email", "duration", "uri", "hostname", "date-time", "uuid", "ipv4", "ipv6"]
)
async def test_strings_of_a_format_end(
    engine: Engine, tokenizer: Tokenizer, grammars: Grammars, form: str
) -> None:
    """A small model goes on with letters where an address has none any more."""
    said = {**TEXT, "format": form}
    schema = {"type": "object", "properties": {"a": said, "b": said}, "required": ["a", "b"]}
    constraint = grammars.compile(json_grammar(schema), "response_format")
    assert constraint.begin(90).bound
    prompt = tuple(tokenizer.encode_chat([{"role": "user", "content": QUESTION}]))
    for seed in range(2):
        sampling = SamplingParams(temperature=seed, seed=seed)
        request = GenerationRequest(prompt, 90, sampling, constraint=constraint)
        text = "".join([delta.text async for delta in engine.generate(request)])
        assert json.loads(text).keys() >= {"a", "b"}


async def test_no_field_starves_the_others(engine: Engine, tokenizer: Tokenizer, grammars: Grammars) -> None:
    schema = {**LOOSE[4], "additionalProperties": False}
    constraint = grammars.compile(json_grammar(schema), "response_format")
    prompt = tuple(tokenizer.encode_chat([{"role": "user", "content": QUESTION}]))
    # The end of a string is as good as forbidden to the model: without bounds, "a" would never end.
    endless = tuple((tokenizer.encode(mark)[0], -100.0) for mark in ('"', '",', '"}', '."', '.",'))
    sampling = SamplingParams(temperature=0, logit_bias=endless)
    deltas = [
        delta
        async for delta in engine.generate(GenerationRequest(prompt, 120, sampling, constraint=constraint))
    ]
    answer = json.loads("".join(delta.text for delta in deltas))
    jsonschema.Draft202012Validator(schema).validate(answer)
    assert all(len(text) > 20 for text in answer.values()), answer


def walk(constraint: Constraint, tokenizer: Tokenizer, limit: int, seed: int) -> str:
    """Random tokens, as wild as they are allowed; the text at the limit or the end of turn."""
    chosen, matcher, text = np.random.default_rng(seed), constraint.begin(limit), tokenizer.stream()
    said = ""
    for _ in range(limit):
        token = int(chosen.choice(np.flatnonzero(matcher.allowed())))
        if token in tokenizer.eos_ids:
            break
        if not matcher.take(token):
            (token,) = np.flatnonzero(matcher.way_out())
            if token in tokenizer.eos_ids:
                break
            assert matcher.take(int(token))
        said += text.push(int(token))
        if matcher.complete:
            break
    return said + text.flush()


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.fuzz)])
def test_the_wildest_answer_ends_in_time(tokenizer: Tokenizer, grammars: Grammars, count: int) -> None:
    for number in range(count):
        schema = schema_of(number)
        constraint = grammars.compile(json_grammar(schema), "response_format")
        least = shortest(constraint)
        for limit in (least, least + 1, least + 30):
            text = walk(constraint, tokenizer, limit, number)
            jsonschema.Draft202012Validator(schema).validate(json.loads(text))


WEATHER = {
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {"city": TEXT, "notes": {"type": "array", "items": TEXT}},
        "required": ["city", "notes"],
    },
}
CALLING: list[dict[str, Any]] = [
    {"tool_choice": "required"},
    {"tool_choice": {"type": "function", "function": {"name": "get_weather"}}},
    {"tool_choice": "auto", "response_format": {"type": "json_object"}},
]


@pytest.mark.parametrize("changes", CALLING)
async def test_calls_end_within_their_room(
    engine: Engine, tokenizer: Tokenizer, grammars: Grammars, changes: dict[str, Any]
) -> None:
    body = ChatBody.model_validate(
        {
            "model": "shammah",
            "messages": [{"role": "user", "content": QUESTION}],
            "tools": [{"type": "function", "function": WEATHER}],
            **changes,
        }
    )
    constraint = tools.compiled(grammars, tokenizer, body)
    prompt = tuple(tools.encode(tokenizer, body))
    least = shortest(constraint)
    for limit in (least, least + 25):
        sampling = SamplingParams(temperature=1, seed=limit)
        request = GenerationRequest(prompt, limit, sampling, constraint=constraint)
        deltas = [delta async for delta in engine.generate(request)]
        assert deltas[-1].finish_reason == "stop"
        reader = CallReader()
        text, calls = reader.push("".join(delta.text for delta in deltas))
        rest, more = reader.flush(cut=False)
        calls += more
        if "response_format" in changes and not calls:
            assert isinstance(json.loads(text + rest), dict)
        else:
            assert calls and text + rest == ""
        for call in calls:
            jsonschema.validate(json.loads(call.arguments), WEATHER["parameters"])


def test_text_beside_tools_is_cut_off_as_ever(tokenizer: Tokenizer, grammars: Grammars) -> None:
    """Text may end anywhere, which does not make it whole."""
    body = ChatBody.model_validate(
        {
            "model": "shammah",
            "messages": [{"role": "user", "content": QUESTION}],
            "tools": [{"type": "function", "function": WEATHER}],
        }
    )
    matcher = tools.compiled(grammars, tokenizer, body).begin(20)
    assert matcher.bound
    for token in tokenizer.encode("The sea is large, and"):
        assert matcher.take(token)
    assert matcher.accepting and not matcher.closed
    # A call that could not be ended any more is not begun.
    begun = [matcher.take(token) for token in tokenizer.encode("<tool_call>")]
    assert not all(begun)
