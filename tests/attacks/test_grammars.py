"""Schemas that cost: no format of an answer may harm the box, or slow another device."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import httpx
import psutil
import pytest
from daemons import Daemon, install_bundle

from appliance.engine.constraint import Grammars
from appliance.engine.engine import Engine
from appliance.engine.request import GenerationRequest
from appliance.engine.sampling import SamplingParams
from appliance.errors import InvalidRequest
from appliance.home import Home
from appliance.model.bundle import Bundle
from appliance.model.tokenizer import Tokenizer
from appliance.sections import ModelConfig
from appliance.store import Store

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
MB = 1 << 20


@pytest.fixture(scope="module")
def box(small: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = Home(tmp_path_factory.mktemp("box")).ensure()
    install_bundle(home, small)
    home.config.write_text(f'[model]\nname = "{small.path.name}"\n[lora]\nenabled = false\n')
    daemon = Daemon(home).start()
    yield daemon
    daemon.kill()


@pytest.fixture(scope="module")
def devices(box: Daemon) -> tuple[str, str]:
    """The keys of a hostile device and of an honest one."""
    store = Store.open(box.home)
    try:
        return store.keys.create("hostile")[1], store.keys.create("honest")[1]
    finally:
        store.close()


def body(schema: Schema, **changes: Any) -> Schema:
    return {
        "model": "shammah",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 8,
        "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}},
        **changes,
    }


def with_tools(*schemas: Schema) -> Schema:
    tools = [
        {"type": "function", "function": {"name": f"tool_{at}", "parameters": schema, "strict": True}}
        for at, schema in enumerate(schemas)
    ]
    return body({}, tools=tools, tool_choice="required", response_format={"type": "text"})


def nested(depth: int, wrap: Callable[[Any], Any], inner: Any = TEXT) -> Any:
    for _ in range(depth):
        inner = wrap(inner)
    return inner


def chain(links: int, wrap: Callable[[Schema], Schema] = lambda link: link, form: str = "d{}") -> Schema:
    """Parts that lead from one to the next."""
    parts = {form.format(at): wrap({"$ref": f"#/$defs/{form.format(at + 1)}"}) for at in range(links)}
    return {"$defs": {**parts, form.format(links): TEXT}, "$ref": f"#/$defs/{form.format(0)}"}


def an_object(schema: Schema) -> Schema:
    return {"type": "object", "properties": {"a": schema}, "required": ["a"]}


REFUSED: dict[str, Schema] = {
    "a chain of references": chain(3000),
    "one through percent signs": chain(3000, form="%64{}"),
    "one through allOf": chain(3000, lambda link: {"allOf": [link]}),
    "one through anyOf": chain(2600, lambda link: {"anyOf": [link, {"type": "null"}]}),
    "one through arrays of anyOf": chain(
        2600, lambda link: {"type": "array", "items": {"anyOf": [link, TEXT]}}
    ),
    "one through properties": chain(2600, an_object),
    "one through items": chain(2600, lambda link: {"type": "array", "prefixItems": [TEXT, link]}),
    "one through patternProperties": chain(
        2600, lambda link: {"type": "object", "patternProperties": {"^a": link}}
    ),
    "one through anchors": {
        "$defs": {f"d{at}": {"$anchor": f"a{at}", "$ref": f"#a{at + 1}"} for at in range(3000)},
        "$ref": "#a0",
    },
    "a circle": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "a circle through anyOf": {"$defs": {"a": {"anyOf": [TEXT, {"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"},
    "itself": {"allOf": [{"$ref": "#"}]},
    "deep arrays": nested(400, lambda schema: {"type": "array", "items": schema}),
    "deep objects": nested(400, an_object),
    "deep allOf": nested(400, lambda schema: {"allOf": [schema]}),
    "deep not": nested(400, lambda schema: {"not": schema}),
    "a deep constant": {"const": nested(400, lambda value: [value], 1)},
    "a deep enum": {"enum": [nested(400, lambda value: {"a": value}, 1)]},
    "a multiple": {"type": "integer", "multipleOf": 999_983},
    "a small multiple": {"type": "number", "multipleOf": 0.0000999983},
    "multiples that meet": {
        "allOf": [{"type": "integer", "multipleOf": 9973}, {"type": "integer", "multipleOf": 9967}]
    },
    "a large constant": {"const": "ab c" * 40_000},
    "many constants": {"enum": ["ab c" * 900 + str(at) for at in range(40)]},
    "a large enum": {"enum": [f"value {at}" for at in range(9000)]},
    "counted twice": {**TEXT, "pattern": "(a{1,1000}){1,1000}b"},
    "counted thrice": {**TEXT, "pattern": "((a{0,99}){0,99}){0,99}"},
    "counted classes": {**TEXT, "pattern": r"^\p{L}{1,5000}$"},
    "deep groups": {**TEXT, "pattern": "(" * 900 + "a" + ")" * 900},
    "a long pattern": {**TEXT, "pattern": "a|b" * 5000},
    "patterns that meet": {"allOf": [{**TEXT, "pattern": f"^.*{at}.{{{at + 9}}}$"} for at in range(20)]},
    "many items": {"type": "array", "minItems": 10**9},
    "many characters": {**TEXT, "minLength": 10**12},
    "many of many": {"type": "object", "minProperties": 10**6},
    "a product": {
        "allOf": [
            {"anyOf": [{"type": "object", "properties": {f"{side}{at}": TEXT}} for at in range(60)]}
            for side in range(4)
        ]
    },
    "a tree of branches": nested(
        11, lambda schema: {"anyOf": [an_object(schema), {"type": "array", "items": schema}]}
    ),
    "optional properties": {"type": "object", "properties": {f"p{at}": {} for at in range(1000)}},
    "required names": {"type": "object", "required": [f"p{at}" for at in range(20_000)]},
    "long names": {"type": "object", "properties": {"ab" * 5000: TEXT}},
    "names by patterns": {
        "type": "object",
        "patternProperties": {f"^.*{at}.{{{at}}}$": TEXT for at in range(1, 60)},
    },
    "large numbers": {"type": "number", "minimum": 10**300},
    "dependent schemas": {"type": "object", "dependentSchemas": {"a": nested(400, an_object)}},
    "names of properties": {"type": "object", "propertyNames": {"pattern": "^(a|aa)+$"}},
    "dynamic references": {
        "$defs": {"a": {"$dynamicAnchor": "x", "anyOf": [{"$dynamicRef": "#x"}]}},
        "$ref": "#/$defs/a",
    },
    "somewhere else": {"$ref": "https://example.com/schema.json"},
    "a file": {"$ref": "file:///etc/passwd"},
}


@pytest.mark.slow
def test_schemas_that_cost_are_refused(box: Daemon) -> None:
    """Each by its field, as an answer's format and as a strict tool's arguments."""
    pid, wrong = box.pid, []
    before = psutil.Process(pid).memory_info().rss
    for name, schema in REFUSED.items():
        asking = [(body(schema), "response_format")]
        if name in ("itself", "multiples that meet"):
            pass  # inside of another it is an honest tree; and once is enough for what takes so long
        elif len(json.dumps(schema)) < 2000:  # more would not fit into the prompt
            inside = schema if "$ref" in schema else {"properties": {"a": schema}, "required": ["a"]}
            asking.append((with_tools({"type": "object"}, {**inside, "type": "object"}), "tools"))
        for asked, field in asking:
            answer = box.post("/v1/chat/completions", json=asked)
            error = answer.json().get("error", {})
            too_deep = error.get("code") == "request_too_complex"  # before anybody knows the body's fields
            named = too_deep or str(error.get("param")).startswith(field)
            if answer.status_code != 400 or not named:
                wrong.append((name, field, answer.status_code, answer.text[:300]))
            elif "fuel" in error["message"] or len(error["message"]) > 700:
                wrong.append((name, field, 400, error["message"][:900]))
    assert wrong == []
    assert box.process is not None and box.process.poll() is None and box.pid == pid
    assert box.get("/health").status_code == 200
    assert box.ask("Hi", max_tokens=2) is not None
    assert psutil.Process(pid).memory_info().rss < before + 300 * MB


def test_honest_schemas_of_the_same_kinds_are_served(box: Daemon) -> None:
    honest: list[Schema] = [
        chain(20),
        chain(30, an_object),
        nested(30, lambda schema: {"type": "array", "items": schema}),
        {"type": "integer", "multipleOf": 1000},
        {"type": "number", "multipleOf": 0.01},
        {"enum": [f"value {at}" for at in range(1000)]},
        {**TEXT, "pattern": r"^\+?[0-9]{1,3}([ -][0-9]{2,4}){2,5}$"},
        {"type": "object", "properties": {f"p{at}": TEXT for at in range(200)}},
        {"type": "array", "items": {"type": "number"}, "maxItems": 10**9},
        {
            "$defs": {"node": an_object({"type": "array", "items": {"$ref": "#/$defs/node"}})},
            "$ref": "#/$defs/node",
        },
    ]
    for schema in honest:
        answer = box.post("/v1/chat/completions", json=body(schema))
        assert answer.status_code == 200, (schema, answer.text)


def costly(number: int) -> Schema:
    """One that passes every screen, and compiles for minutes."""
    factors = (9973 - 2 * number, 9967)
    return {"allOf": [{"type": "integer", "multipleOf": factor} for factor in factors]}


def child_of(box: Daemon) -> psutil.Process | None:
    """The process that tries grammars out."""
    for child in psutil.Process(box.pid).children():
        with contextlib.suppress(psutil.Error):
            if "appliance.engine.trial" in child.cmdline():
                return child
    return None


@pytest.mark.slow
async def test_compiling_keeps_nobody_waiting(box: Daemon, devices: tuple[str, str]) -> None:
    hostile, honest = ({"Authorization": f"Bearer {key}"} for key in devices)
    order: list[tuple[str, int]] = []
    async with httpx.AsyncClient(base_url=box.url, timeout=120) as client:

        async def ask(who: str, headers: dict[str, str], schema: Schema) -> httpx.Response:
            answer = await client.post("/v1/chat/completions", json=body(schema), headers=headers)
            order.append((who, answer.status_code))
            return answer

        await ask("warm", honest, TEXT)  # the child and the tokenizer are there
        attack = [asyncio.create_task(ask("hostile", hostile, costly(number))) for number in range(40)]
        while len(order) < 1 + 40 - 9:  # all but the one under way and those that wait are turned away
            await asyncio.sleep(0.05)
        for path in ("/v1/models", "/health", "/login", "/ready"):
            answer = await client.get(path, headers=honest, follow_redirects=True)
            assert answer.status_code == 200, path
        served = await ask("honest", honest, {"type": "integer", "minimum": 3})
        assert served.status_code == 200
        # The honest device waited for one of the other's at most, and one may have been under way.
        before = order[: order.index(("honest", 200))]
        assert {status for who, status in before if who == "hostile"} <= {400, 429}
        assert before.count(("hostile", 400)) <= 2
        assert before.count(("hostile", 429)) + before.count(("hostile", 400)) >= 40 - 9
        # The same answers as ever are not compiled again.
        assert (await ask("honest", honest, TEXT)).status_code == 200
        # Who leaves does not matter any more: the next one has its turn.
        for task in attack:
            task.cancel()
        await asyncio.gather(*attack, return_exceptions=True)
        assert (await ask("hostile", hostile, {"type": "integer", "minimum": 4})).status_code == 200
        refused = await ask("hostile", hostile, costly(0))
        assert refused.status_code == 400 and "too long to compile" in refused.json()["error"]["message"]


def test_a_crash_of_the_compiler_is_one_refusal(box: Daemon) -> None:
    box.post("/v1/chat/completions", json=body(TEXT | {"maxLength": 77}))
    child = child_of(box)
    assert child is not None
    child.suspend()
    with httpx.Client(base_url=box.url, timeout=60) as client:
        answers: list[httpx.Response] = []
        asking = threading.Thread(
            target=lambda: answers.append(client.post("/v1/chat/completions", json=body({"maxLength": 78})))
        )
        asking.start()
        time.sleep(0.3)
        child.send_signal(signal.SIGSEGV)
        child.resume()
        asking.join(60)
    assert answers[0].status_code == 400, answers[0].text
    error = answers[0].json()["error"]
    assert error["param"] == "response_format" and "too complex to compile" in error["message"]
    assert box.get("/health").status_code == 200
    # Killed for want of memory, say: that tells nothing of the schema, and another child tries it.
    box.post("/v1/chat/completions", json=body(TEXT | {"maxLength": 79}))
    child = child_of(box)
    assert child is not None
    child.kill()
    assert box.post("/v1/chat/completions", json=body(TEXT | {"maxLength": 80})).status_code == 200


async def test_masks_that_cost_end_their_own_answer(small: Bundle) -> None:
    """No schema gets there any more, a grammar does: each token of a text that is so long takes long."""
    tokenizer, grammars = Tokenizer(small), Grammars(small)
    text = "".join(chr(97 + at * at % 26) for at in range(50_000))
    constraint = await asyncio.to_thread(grammars.compile, f'start: "{text}"\n', "response_format")
    engine = Engine(small, tokenizer, ModelConfig(slots=4, queue=8))
    engine.start()
    try:
        prompt = tuple(tokenizer.encode("Hello"))
        doomed = engine.generate(GenerationRequest(prompt, 1500, constraint=constraint, client="hostile"))
        free = engine.generate(GenerationRequest(prompt, 200, SamplingParams(temperature=0), client="honest"))
        told = 0
        with pytest.raises(InvalidRequest, match="too complex"):
            async for delta in doomed:
                told = delta.completion_tokens
        assert 0 < told < 1500
        deltas = [delta async for delta in free]
        assert deltas[-1].finish_reason is not None
        again = engine.generate(GenerationRequest(prompt, 5, SamplingParams(temperature=0), client="honest"))
        assert [delta async for delta in again][-1].finish_reason is not None
    finally:
        engine.stop()
        grammars.stop()


async def test_another_devices_stream_goes_on(box: Daemon, devices: tuple[str, str]) -> None:
    """While one device's answers cost what they may, another's stream has its tokens, each in its turn."""
    hostile, honest = ({"Authorization": f"Bearer {key}"} for key in devices)
    worst: list[Schema] = [
        {"type": "number", "multipleOf": 0.9973, "maximum": 10**14},
        chain(300, an_object),
        {**TEXT, "pattern": "^(.*[ab].{30}){5}$"},
    ]
    told: list[str] = []
    async with httpx.AsyncClient(base_url=box.url, timeout=120) as client:

        async def listen(who: str, headers: dict[str, str], asked: Schema) -> None:
            async with client.stream(
                "POST", "/v1/chat/completions", json={**asked, "stream": True}, headers=headers
            ) as answer:
                assert answer.status_code == 200, await answer.aread()
                async for line in answer.aiter_lines():
                    if line.startswith("data: "):
                        told.append(who)

        plain = {**body({}, max_tokens=60, temperature=0), "response_format": {"type": "text"}}
        await listen("alone", honest, plain)
        attack = [
            asyncio.create_task(listen("hostile", hostile, body(schema, max_tokens=400, temperature=2, n=1)))
            for schema in worst
        ]
        while "hostile" not in told:
            await asyncio.sleep(0.01)
        start = len(told)
        await listen("honest", honest, plain)
        during = told[start:]
        await asyncio.gather(*attack)
    assert during.count("honest") == told.count("alone")
    # Never more than a few tokens of each other answer between two of this one's.
    places = [at for at, who in enumerate(during) if who == "honest"]
    assert max(after - before for before, after in pairwise(places)) <= 40


def test_the_child_ends_with_the_daemon(box: Daemon) -> None:
    box.post("/v1/chat/completions", json=body(TEXT | {"maxLength": 90}))
    child = child_of(box)
    assert child is not None
    box.kill()
    ended, alive = psutil.wait_procs([child], timeout=20)
    assert (len(ended), alive) == (1, [])
