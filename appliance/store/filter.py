"""Which examples are meant: the filter of the console's list, and its SQL."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

from appliance.errors import InvalidRequest
from appliance.store.example import KINDS, STATES, Kind, State
from appliance.store.normalise import fold
from appliance.store.rows import valid_text

MAX_SEARCH = 200
"""Longest search, in characters: each of its words is looked for in every text."""

Bind = Callable[[Any], str]
"""Takes a value and gives the placeholder that stands for it."""

_BOUNDS = (
    ("since", "created", ">="),
    ("until", "created", "<"),
    ("weight_from", "weight", ">="),
    ("weight_to", "weight", "<="),
)


class Parameters(list[Any]):
    """Values of a statement whose parts share numbered placeholders."""

    def bind(self, value: Any) -> str:
        self.append(value)
        return f"?{len(self)}"


@dataclass(frozen=True)
class Filter:
    """What an example must be; the default lets every one through.

    Attributes:
        search: words that all occur, in any order and as parts of words too, in its query, response,
            target, feedback, correction and note. Case and white space do not matter.
        states: it is in one of these; in any, when none is given.
        kinds: it is one of these; any, when none is given.
        device: the name of the device it is from; "" means from none.
        weight_from: its weight is this or more.
        weight_to: its weight is this or less.
        since: it was created at this time or later.
        until: it was created before this time.
        masked: whether private texts in it were masked.
    """

    search: str = ""
    states: tuple[State, ...] = ()
    kinds: tuple[Kind, ...] = ()
    device: str | None = None
    weight_from: float | None = None
    weight_to: float | None = None
    since: float | None = None
    until: float | None = None
    masked: bool | None = None

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            InvalidRequest: one of them cannot be; `param` names it.
        """
        if len(valid_text(self.search, "search")) > MAX_SEARCH:
            raise InvalidRequest(f"A search has up to {MAX_SEARCH} characters.", param="search")
        if self.device is not None:
            valid_text(self.device, "device")
        for name, _, _ in _BOUNDS:
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise InvalidRequest(f"`{name}` must be a finite number.", param=name)
        # One order, so that equal filters are equal, whatever order a form sends.
        object.__setattr__(self, "states", _known(self.states, STATES, "states"))
        object.__setattr__(self, "kinds", _known(self.kinds, KINDS, "kinds"))

    @property
    def words(self) -> tuple[str, ...]:
        """What is searched for, folded; each word once."""
        return tuple(dict.fromkeys(fold(self.search).split()))

    @property
    def anything(self) -> Filter:
        """The same without the search."""
        return replace(self, search="")

    @property
    def joined(self) -> str:
        """What follows `examples e` in a FROM: the texts as `x`, when there is a search."""
        # CROSS JOIN keeps the order of the tables: the texts are looked up for what the rest lets through.
        return "CROSS JOIN example_texts x ON x.seq = e.seq" if self.words else ""

    def conditions(self, bind: Bind, unindexed: Collection[str] = ()) -> list[str]:
        """What must be true of a row, but for its state.

        Args:
            bind: for the values.
            unindexed: bounds not to be looked up in an index, because the caller has a closer one.
        """
        found = []
        if self.kinds:
            found.append(f"e.kind IN ({', '.join(map(bind, self.kinds))})")
        if self.device is not None:
            found.append(f"e.device = {bind(self.device)}" if self.device else "e.device IS NULL")
        if self.masked is not None:
            found.append(f"e.masked IS {'NOT ' if self.masked else ''}NULL")
        for name, column, sign in _BOUNDS:
            if (value := getattr(self, name)) is not None:
                plus = "+" if name in unindexed else ""
                found.append(f"{plus}e.{column} {sign} {bind(value)}")
        found += [f"instr(x.folded, {bind(word)}) > 0" for word in self.words]
        return found

    def where(self, bind: Bind) -> str:
        """What must be true of a row, its state included."""
        states = ", ".join(f"'{state}'" for state in self.states or STATES)
        return " AND ".join([f"e.state IN ({states})", *self.conditions(bind)])


def _known(values: Collection[Any], all_: tuple[Any, ...], param: str) -> tuple[Any, ...]:
    unknown = sorted(set(map(str, values)) - set(all_))
    if unknown:
        raise InvalidRequest(
            f"`{param}` has {unknown[0]!r}, which is none of {', '.join(all_)}.", param=param
        )
    return tuple(value for value in all_ if value in values)


EVERYTHING = Filter()
