"""What a chat template may cost: steps, time, and the size of what it makes.

A template is a program of whoever made the model, and what it computes depends on what users write.
So everything it does is counted, and what would grow without bound is measured before it is made.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jinja2

STEPS = 500_000
SECONDS = 2.0  # of this thread's processor: a busy machine does not count
LARGEST = 8_000_000
"""Characters of the longest text that a template may make, on the way or in the end."""
_CHARS = 200  # of a text made count as a step
_ITEM = 64  # characters that an item of a list weighs
_DEPTH = 100
_BITS = 4096


class TooCostly(jinja2.TemplateRuntimeError):
    """A template computes for too long, or makes something too large."""


class _Budget:
    def __init__(self) -> None:
        self._steps = STEPS
        self._until = time.thread_time() + SECONDS

    def take(self, steps: int) -> None:
        self._steps -= steps
        if self._steps < 0 or time.thread_time() > self._until:
            raise TooCostly("it takes too many steps for these messages")


_current: ContextVar[_Budget] = ContextVar("budget")


@contextmanager
def bounded() -> Iterator[None]:
    """What a template does in this block is counted."""
    token = _current.set(_Budget())
    try:
        yield
    finally:
        _current.reset(token)


def take(steps: int = 1) -> None:
    """Count some steps.

    Raises:
        TooCostly: there are none left.
    """
    _current.get().take(steps)


def make_room(chars: int) -> None:
    """Count a text of so many characters before it is made."""
    if chars > LARGEST:
        raise TooCostly("it makes a text that is too long")
    take(1 + max(chars, 0) // _CHARS)


def check_int(bits: int) -> None:
    """Refuse an integer of so many bits."""
    if bits > _BITS:
        raise TooCostly("it computes a number that is too large")


def measure(value: Any) -> tuple[int, int]:
    """Count what a value holds, as often as it would be printed.

    Lists that hold the same list twice, which holds another twice, are small in memory and endless in print.

    Returns:
        How many values there are in it, and how deep they lie.
    """
    count, weight, deepest = 0, 0, 0
    pending: list[tuple[Any, int]] = [(value, 0)]
    while pending:
        item, depth = pending.pop()
        count += 1
        weight += len(item) if isinstance(item, str) else _ITEM
        deepest = max(deepest, depth)
        inner: Any = ()
        if isinstance(item, dict):
            inner = (*item.keys(), *item.values())
        elif isinstance(item, list | tuple | set | frozenset):
            inner = item
        if depth > _DEPTH or weight + _ITEM * len(inner) > LARGEST:
            raise TooCostly("it makes a list that is too large")
        pending.extend((each, depth + 1) for each in inner)
    make_room(weight)
    return count, deepest
