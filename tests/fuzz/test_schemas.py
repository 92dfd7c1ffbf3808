"""Generated schemas that cost: the box answers or refuses each, and pays little for it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import make_checkpoint
from daemons import Daemon, install_bundle
from fuzzing import JSON
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from appliance.engine.json_schema import MAX_TEXT, measure
from appliance.home import Home
from appliance.model.importer import import_model

MB = 1 << 20
LOOP_SECONDS = 0.25
"""Of the event loop's processor time, for a request: what reads the body is most of it."""
GROWTH = 400 * MB
FIELDS = ("response_format", "tools", "messages")
LONGEST_TOOL = 4000
"""Characters; more would not fit into the small model's prompt."""
PARTS = 40
SIZES = st.sampled_from([0, 1, 2, 3, 50, 1000, 9973, 65_537, 10**6, 10**9, 10**18, 10**30, -1, 0.5, 1e308])
ATOMS = st.sampled_from(
    [
        "a",
        "[a-z]",
        ".",
        r"\w",
        r"\p{L}",
        "(a|aa)",
        "(a*)",
        "[^b]",
        "é",
        "(b|.)",
        r"\d",
        "(",
        ")",
        "[",
        "(?=a)",
    ]
)
TIMES = st.sampled_from(["", "*", "+", "?", "{3}", "{1,50}", "{0,1000}", "{2,}", "{9999}", "{1000000000}"])
PATTERNS = st.recursive(
    st.tuples(ATOMS, TIMES).map("".join),
    lambda inner: (
        st.tuples(inner, inner).map("".join)
        | st.tuples(inner, inner).map("|".join)
        | st.tuples(inner, TIMES).map(lambda both: f"({both[0]}){both[1]}")
        | inner.map(lambda pattern: f"^{pattern}$")
    ),
    max_leaves=8,
)
REFERENCES = st.one_of(
    st.integers(0, PARTS - 1).map(lambda at: {"$ref": f"#/$defs/d{at}"}),
    st.sampled_from(["#", "#/properties/a", "#/$defs", "#x", "http://a/b#c", "#/$defs/d1/items"]).map(
        lambda reference: {"$ref": reference}
    ),
)
LEAVES = st.one_of(
    st.sampled_from([{}, True, False, {"type": "string"}, {"type": "integer"}, {"type": ["number", "null"]}]),
    REFERENCES,
    st.fixed_dictionaries({"type": st.just("integer"), "multipleOf": SIZES}),
    st.fixed_dictionaries({"type": st.just("number"), "minimum": SIZES, "maximum": SIZES}),
    st.fixed_dictionaries({"type": st.just("string"), "pattern": PATTERNS}),
    st.fixed_dictionaries({"type": st.just("string"), "minLength": SIZES, "maxLength": SIZES}),
    st.fixed_dictionaries(
        {"pattern": PATTERNS, "maxLength": SIZES, "format": st.sampled_from(["email", "x"])}
    ),
    st.tuples(st.text(max_size=9), st.sampled_from([1, 99, 4000, 90_000])).map(
        lambda x: {"const": x[0] * x[1]}
    ),
    st.sampled_from([3, 999, 5000]).map(lambda count: {"enum": [f"value {at}" for at in range(count)]}),
    JSON.map(lambda value: {"const": value}),
)


def around(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """What a schema may be inside of."""
    several = st.lists(inner, max_size=4)
    copies = st.tuples(inner, st.sampled_from([1, 7, 100, 700])).map(lambda x: [x[0]] * x[1])
    named = st.dictionaries(st.sampled_from(["a", "b", "^c", "long" * 80]), inner, max_size=4)
    keyed = st.sampled_from(
        ["not", "if", "then", "contains", "propertyNames", "unevaluatedProperties", "items"]
    )
    return st.one_of(
        st.tuples(st.sampled_from(["allOf", "anyOf", "oneOf", "prefixItems", "items"]), several | copies).map(
            lambda x: {x[0]: x[1]}
        ),
        st.fixed_dictionaries(
            {"type": st.just("array"), "items": inner, "minItems": SIZES, "maxItems": SIZES}
        ),
        st.fixed_dictionaries(
            {"properties": named, "required": st.lists(st.sampled_from("abc"), max_size=3)}
        ),
        st.fixed_dictionaries({"patternProperties": st.dictionaries(PATTERNS, inner, max_size=3)}),
        st.fixed_dictionaries({"additionalProperties": inner, "minProperties": SIZES}),
        st.tuples(keyed, inner).map(lambda x: {x[0]: x[1]}),
        st.tuples(inner, st.integers(2, 90)).map(lambda x: deep(*x)),
        st.tuples(inner, st.integers(1, 500))
        .map(lambda x: {f"p{at}": x[0] for at in range(x[1])})
        .map(lambda properties: {"type": "object", "properties": properties}),
    )


def deep(schema: Any, levels: int) -> Any:
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


class Text(str):
    """One that nobody wants to see whole."""

    def __repr__(self) -> str:
        return f"<{len(self)} characters>"


@st.composite
def schemas(draw: st.DrawFn) -> Text:
    """A schema with parts that lead to each other, as text of at most some 200 kB."""
    whole = draw(st.recursive(LEAVES, around, max_leaves=12).filter(lambda schema: isinstance(schema, dict)))
    parts = draw(st.lists(st.recursive(LEAVES, around, max_leaves=4), min_size=1, max_size=6))
    schema = {**whole, "$defs": {f"d{at}": parts[at % len(parts)] for at in range(PARTS)}}
    assume(measure(schema) <= MAX_TEXT)
    return Text(json.dumps(schema))


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    place = tmp_path_factory.mktemp("schemas")
    made = make_checkpoint(place / "small", max_position_embeddings=2048)
    small = import_model(str(made), Home(place / "home").ensure())
    home = Home(place / "box").ensure()
    install_bundle(home, small)
    home.config.write_text(f'[model]\nname = "{small.path.name}"\n[lora]\nenabled = false\n')
    daemon = Daemon(home).start()
    yield daemon
    daemon.kill()


def loop_seconds(pid: int) -> float:
    """Processor time of the event loop's thread."""
    fields = Path(f"/proc/{pid}/task/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def highest_memory(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@pytest.mark.parametrize("examples", [12, pytest.param(1500, marks=pytest.mark.fuzz)])
def test_schemas_that_cost(box: Daemon, examples: int) -> None:
    told: dict[int, int] = {}
    assert box.post("/v1/chat/completions", json=asked({"type": "object"}, 0)).status_code == 200
    before = highest_memory(box.pid)
    worst = 0.0

    @settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(schemas(), st.integers(0, 2))
    def run(text: str, how: int) -> None:
        nonlocal worst
        schema = json.loads(text)
        if len(text) > LONGEST_TOOL:
            how = 0
        began = loop_seconds(box.pid)
        answer = box.post(
            "/v1/chat/completions",
            content=json.dumps(asked(schema, how)),  # with NaN and the like, which httpx would not send
            headers={"Content-Type": "application/json"},
        )
        worst = max(worst, loop_seconds(box.pid) - began)
        told[answer.status_code] = told.get(answer.status_code, 0) + 1
        assert box.process is not None and box.process.poll() is None, text[:2000]
        assert answer.status_code in (200, 400), answer.text
        if answer.status_code == 400:
            error = answer.json()["error"]
            assert error["type"] == "invalid_request_error" and error["message"]
            assert error["param"] is None or error["param"].startswith(
                ("response_format", "tools", "messages")
            )

    run()
    grown = highest_memory(box.pid) - before
    print(f"\n{told}; the loop computed {worst:.2f} s at most; memory rose by {grown / MB:.0f} MB", end="")
    assert worst < LOOP_SECONDS
    assert grown < GROWTH
    assert box.ask("Hi", max_tokens=2) is not None


def asked(schema: dict[str, Any], how: int) -> dict[str, Any]:
    """A request with that schema: for the answer, or for a tool that is strict or not."""
    body: dict[str, Any] = {
        "model": "shammah",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 6,
        "seed": 1,
    }
    if how == 0:
        form = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
        return {**body, "response_format": form}
    parameters = {"type": "object", "properties": {"a": {}}, **schema}
    parameters["type"] = "object"
    function = {"name": "f", "parameters": parameters, "strict": how == 1}
    return {**body, "tools": [{"type": "function", "function": function}], "tool_choice": "required"}
