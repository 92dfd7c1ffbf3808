from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any

import jsonschema
import numpy as np
import pytest
from schemas import random_schema

from appliance.engine.constraint import Constraint, Grammars, json_grammar
from appliance.engine.engine import Engine
from appliance.engine.request import Delta, GenerationRequest
from appliance.engine.sampling import SamplingParams
from appliance.errors import InvalidRequest
from appliance.model.bundle import Bundle
from appliance.model.tokenizer import Tokenizer

SCHEMAS = range(200)
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def grammars(bundle: Bundle) -> Grammars:
    return Grammars(bundle)


def compiled(grammars: Grammars, schema: dict[str, Any]) -> Constraint:
    return grammars.compile(json_grammar(schema), "response_format")


def check(text: str, schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(schema).validate(json.loads(text))


def walk(constraint: Constraint, tokenizer: Tokenizer, seed: int, steps: int = 150) -> str | None:
    """The text of random allowed tokens up to the end of turn; None when it does not come to an end."""
    chosen = np.random.default_rng(seed)
    (end,) = tokenizer.eos_ids
    closers = [tokenizer.encode(mark)[0] for mark in ('"', "}", "]", '"}', ",", "0")]
    matcher, text = constraint.begin(), b""
    for _ in range(steps):
        allowed = matcher.allowed()
        assert allowed.any()
        assert allowed[end] == matcher.accepting
        assert not any(allowed[ident] for ident in tokenizer.control_ids if ident != end)
        closing = [ident for ident in closers if allowed[ident]]
        if allowed[end] and chosen.random() < 0.5:
            return text.decode()
        if closing and chosen.random() < 0.4:
            token = int(chosen.choice(closing))
        else:
            token = int(chosen.choice(np.flatnonzero(allowed)))
        if token == end:
            return text.decode()
        matcher.take(token)
        text += tokenizer.bytes_of(token)
        if matcher.complete:
            return text.decode()
    return None


def test_whatever_a_grammar_lets_through_is_valid(grammars: Grammars, tokenizer: Tokenizer) -> None:
    ended = 0
    for seed in SCHEMAS:
        schema = random_schema(seed)
        text = walk(compiled(grammars, schema), tokenizer, seed)
        if text is not None:
            ended += 1
            check(text, schema)
    assert ended > 0.9 * len(SCHEMAS)


async def test_what_the_model_ends_is_valid(
    bundle: Bundle, tokenizer: Tokenizer, grammars: Grammars, engine: Engine
) -> None:
    prompt = tuple(tokenizer.encode("A short example in JSON:\n"))
    ended = 0
    places = asyncio.Semaphore(4)

    async def ask(seed: int) -> None:
        nonlocal ended
        schema = random_schema(seed)
        request = GenerationRequest(
            prompt,
            12,
            SamplingParams(temperature=seed % 2, seed=seed, frequency_penalty=1),
            constraint=compiled(grammars, schema),
        )
        async with places:
            deltas = [delta async for delta in engine.generate(request)]
        text = "".join(delta.text for delta in deltas)
        if deltas[-1].finish_reason == "stop":
            ended += 1
            check(text, schema)
        else:
            assert deltas[-1].completion_tokens == 12

    await asyncio.gather(*(ask(seed) for seed in SCHEMAS))
    assert ended > 0.3 * len(SCHEMAS)


async def test_a_stream_under_a_grammar_is_its_text(
    engine: Engine, grammars: Grammars, prompts: list[tuple[int, ...]]
) -> None:
    request = GenerationRequest(
        prompts[1], 60, SamplingParams(temperature=0), logprobs=1, constraint=compiled(grammars, PERSON)
    )
    deltas: list[Delta] = [delta async for delta in engine.generate(request)]
    text = "".join(delta.text for delta in deltas)
    assert deltas[-1].finish_reason == "stop"
    check(text, PERSON)
    tokens = [token for delta in deltas for token in delta.tokens]
    assert len(tokens) == deltas[-1].completion_tokens
    # The numbers are the model's own: it would rather have said something else than a bracket.
    assert tokens[0].top[0][1] > tokens[0].logprob


async def test_neighbours_are_not_constrained(
    engine: Engine, grammars: Grammars, prompts: list[tuple[int, ...]]
) -> None:
    free = GenerationRequest(prompts[1], 12, SamplingParams(temperature=0))
    forced = GenerationRequest(
        prompts[1], 12, SamplingParams(temperature=0), constraint=compiled(grammars, PERSON)
    )

    async def text(request: GenerationRequest) -> str:
        return "".join([delta.text async for delta in engine.generate(request)])

    alone = await text(free), await text(forced)
    assert alone[1].startswith("{")
    together = await asyncio.gather(*(text(request) for request in (free, forced, free, forced)))
    assert together == [*alone, *alone]


def test_white_space_does_not_go_on(grammars: Grammars, tokenizer: Tokenizer) -> None:
    matcher = compiled(grammars, {"type": "object"}).begin()
    for token in tokenizer.encode('{"a": '):
        matcher.take(token)
    allowed = matcher.allowed()
    assert not any(allowed[tokenizer.encode(space)[0]] for space in (" ", "\n", "\t", "  "))


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "wizard"}, "wizard"),
        ({"type": "object", "not": {}}, "not"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"$ref": "https://example.com/schema"}, "example.com"),
        ({"$ref": "#/$defs/none"}, "none"),
        ({"type": "string", "pattern": "(a+"}, "unclosed"),
        ({"type": "string", "format": "wizardry"}, "wizardry"),
        ({"enum": []}, "Unsatisfiable"),
        ({"type": "integer", "minimum": 5, "maximum": 1}, "Unsatisfiable"),
        # Nobody turns the strictness off.
        ({"type": "object", "not": {}, "x-guidance": {"lenient": True}}, "not"),
        ({"type": "array", "prefixItems": [{"uniqueItems": True, "x-guidance": {"lenient": True}}]}, "uniq"),
        ({"description": "x" * 300_000}, "large"),
    ],
)
def test_schemas_that_cannot_be_served(grammars: Grammars, schema: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason) as caught:
        compiled(grammars, schema)
    assert caught.value.param == "response_format"
    assert "(" not in caught.value.message[:40]  # no places in a grammar that the caller never saw


def test_deep_and_explosive_schemas_cost_little(grammars: Grammars, tokenizer: Tokenizer) -> None:
    deep: dict[str, Any] = {"type": "integer"}
    for _ in range(400):
        deep = {"type": "array", "items": deep}
    with pytest.raises(InvalidRequest):
        compiled(grammars, deep)
    began = time.monotonic()
    for pattern in ("(a{1,1000}){1,1000}b", "^(a|aa)+(b|bb)+.*c.{50}.*d.{60}$", "((a*)*)*b"):
        with suppress(InvalidRequest):
            walk(compiled(grammars, {"type": "string", "pattern": pattern}), tokenizer, 1, 100)
    assert time.monotonic() - began < 10


async def test_a_grammar_that_becomes_too_complex_ends_its_own_answer_only(
    engine: Engine, grammars: Grammars, prompts: list[tuple[int, ...]]
) -> None:
    explosive = compiled(grammars, {"type": "string", "pattern": "^(.*[ab].{30}){5}$"})
    wild = SamplingParams(temperature=2, seed=1)
    doomed = engine.generate(GenerationRequest(prompts[1], 300, wild, constraint=explosive))
    free = engine.generate(GenerationRequest(prompts[1], 20, SamplingParams(temperature=0)))
    with pytest.raises(InvalidRequest, match="too complex"):
        async for _ in doomed:
            pass
    assert [delta async for delta in free][-1].finish_reason is not None
    for _ in range(50):
        if engine.stats().active == 0:
            break
        await asyncio.sleep(0.1)
    assert engine.stats().active == 0


def test_a_schema_is_compiled_once(grammars: Grammars) -> None:
    assert compiled(grammars, PERSON) is compiled(grammars, dict(PERSON))


def test_what_one_client_has_compiled_is_not_at_hand_for_another(grammars: Grammars) -> None:
    """The time of an answer would tell which names and numbers stand in another device's schema."""
    secret = json_grammar({"enum": ["4711"]})
    anna = grammars.compile(secret, "response_format", "anna")
    assert grammars.compile(secret, "response_format", "anna") is anna
    tried = len(grammars._verdicts)
    assert grammars.compile(secret, "response_format", "ben") is not anna
    assert len(grammars._verdicts) == tried + 1


def test_the_serving_process_stays_light() -> None:
    code = "import sys, appliance.app; print({'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"
