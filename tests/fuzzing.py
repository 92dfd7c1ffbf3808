"""What tests/fuzz have in common: damaged files, altered JSON, and so many of them."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

often = pytest.mark.parametrize("examples", [60, pytest.param(3000, marks=pytest.mark.fuzz)])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
SECONDS, BYTES = 20.0, 200_000_000


def many(examples: int, strategy: st.SearchStrategy[Any], check: Callable[[Any], None]) -> None:
    """Try `check` with so many examples, the same each time."""
    tried = 0

    @settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def run(value: Any) -> None:
        nonlocal tried
        tried += 1
        with bounded():
            check(value)

    run()
    print(f"\n{tried:,} files", end="")
    assert tried >= examples // 2


@contextmanager
def bounded() -> Iterator[None]:
    """It takes a moment and does not fill the memory."""
    tracemalloc.start()
    began = time.monotonic()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < BYTES
        assert time.monotonic() - began < SECONDS
    finally:
        tracemalloc.stop()


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """A file that something happened to: cut off, bytes changed, put in, doubled."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(("cut", "change", "insert", "repeat", "length")))
        if kind == "cut":
            del data[at:]
        elif kind == "change":
            data[at : at + 1] = draw(st.binary(min_size=1, max_size=8))
        elif kind == "insert":
            data[at:at] = draw(st.binary(max_size=40))
        elif kind == "repeat":
            data[at:at] = data[at : at + 200]
        else:
            data[:8] = draw(st.sampled_from((0, 1, 2**31, 2**63, 2**64 - 1))).to_bytes(8, "little")
    return bytes(data)


def altered(whole: Any) -> st.SearchStrategy[Any]:
    """JSON of the right form, with something else in one or two of its places."""

    @st.composite
    def alter(draw: st.DrawFn) -> Any:
        value = json.loads(json.dumps(whole))
        for _ in range(draw(st.integers(1, 2))):
            node = value
            while isinstance(node, dict | list) and node:
                key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
                inner = node[key]
                if not isinstance(inner, dict | list) or not inner or draw(st.integers(0, 3)) == 0:
                    if draw(st.booleans()):
                        node[key] = draw(JSON)
                    else:
                        del node[key]
                    break
                node = inner
        return value

    return alter()
