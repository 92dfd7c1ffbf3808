"""Browsing: every example, whatever its state, a page at a time.

A page starts behind a position, not after a count of rows, so the hundredth costs what the first does
and none is shown twice because something came in meanwhile. Each state has its part of an index in the
order asked for; SQLite merges these parts and stops when the page is full.

A search looks through the texts (`example_texts`) until the page is full. It does so a slice at a time,
because a connection serves one statement at a time and requests of devices read, too.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

from appliance.errors import InvalidRequest
from appliance.store.db import Database
from appliance.store.example import COLUMNS, STATES, Example, ExampleList, State, example_from
from appliance.store.filter import EVERYTHING, Filter, Parameters

__all__ = ["EVERYTHING", "SORTS", "Browse", "Filter", "Page", "Sort", "Total"]

Sort = Literal["newest", "oldest", "heaviest", "lightest"]
SORTS: tuple[Sort, ...] = get_args(Sort)

MAX_SIZE = 500
COUNTED = 1000
"""What a search finds is counted as far as this."""
SLICE = 5000
"""How many texts one statement of a search looks at: some ten milliseconds."""

Position: TypeAlias = tuple[float, ...]


@dataclass(frozen=True)
class _Order:
    """A sort order: its index, whose columns are these after the state, and the direction."""

    index: str
    columns: tuple[str, ...]
    descending: bool

    @property
    def reversed(self) -> _Order:
        return replace(self, descending=not self.descending)

    @property
    def ends(self) -> tuple[str, str]:
        """Names of the filter's bounds at which this order starts and ends."""
        low, high = ("since", "until") if self.columns[0] == "created" else ("weight_from", "weight_to")
        return (high, low) if self.descending else (low, high)

    def position(self, row: sqlite3.Row) -> Position:
        return tuple(row[name] for name in self.columns)


_BY_DATE = _Order("examples_by_date", ("created", "seq"), True)
_BY_WEIGHT = _Order("examples_by_weight", ("weight", "created", "seq"), True)
_ORDERS: dict[Sort, _Order] = {
    "newest": _BY_DATE,
    "oldest": _BY_DATE.reversed,
    "heaviest": _BY_WEIGHT,
    "lightest": _BY_WEIGHT.reversed,
}


@dataclass(frozen=True)
class Total:
    """How many examples a filter lets through; when `capped`, at least so many."""

    count: int
    capped: bool


@dataclass(frozen=True)
class Page:
    """A page of examples.

    Attributes:
        next: cursor of the page after this one; None when this is the last.
        previous: cursor of the page before this one; None when this is the first.
        total: of all pages; None when it was not asked for.
    """

    examples: ExampleList
    next: str | None
    previous: str | None
    total: Total | None


class Browse:
    """Reads the table `examples` for the console's list."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def page(
        self,
        filter: Filter = EVERYTHING,
        *,
        sort: Sort = "newest",
        cursor: str | None = None,
        size: int = 50,
        count: bool = True,
    ) -> Page:
        """A page of what the filter lets through.

        A cursor stays good while examples come and go. If its own page has become empty, it gives the
        nearest one: the last page, or a full first page.

        Args:
            filter: which examples.
            sort: by date or by weight; those of one weight are sorted by date.
            cursor: `next` or `previous` of another page of the same filter and sort; None: the first.
            size: how many examples a page has.
            count: whether to count all; callers that know it from the page before can do without.

        Raises:
            InvalidRequest: there is no such sort, no such size, or the cursor is not of this list.
        """
        if sort not in SORTS:
            raise InvalidRequest(f"`sort` is one of {', '.join(SORTS)}.", param="sort")
        if not 1 <= size <= MAX_SIZE:
            raise InvalidRequest(f"A page has 1 to {MAX_SIZE} examples.", param="size")
        order = _ORDERS[sort]
        mark = hashlib.sha256(repr((filter, sort)).encode()).hexdigest()[:16]
        back, start = (False, None) if cursor is None else _decode(cursor, mark, len(order.columns))
        rows: list[sqlite3.Row] = []
        if back:
            rows = self._walk(filter, order.reversed, start, size + 1)
            if len(rows) < size:
                back, start = False, None
        if not back:
            rows = self._walk(filter, order, start, size + 1)
            if not rows and start is not None:
                back, start = True, None
                rows = self._walk(filter, order.reversed, None, size + 1)
        more, rows = len(rows) > size, rows[:size]
        before, after = (more, start is not None) if back else (start is not None, more)
        if back:
            rows.reverse()
        return Page(
            examples=[example_from(row) for row in rows],
            next=_encode(mark, False, order.position(rows[-1])) if after and rows else None,
            previous=_encode(mark, True, order.position(rows[0])) if before and rows else None,
            total=self.count(filter) if count else None,
        )

    def count(self, filter: Filter = EVERYTHING) -> Total:
        """How many examples the filter lets through: exactly without a search, with one up to a cap."""
        if not filter.words:
            values = Parameters()
            where = filter.where(values.bind)
            sql = f"SELECT count(*) FROM examples e INDEXED BY {_BY_DATE.index} WHERE {where}"
            return Total(self._db.value(sql, values), False)
        found = 0
        for after, until in self._slices(filter, _BY_DATE, None):
            found += len(
                self._rows(
                    "e.created AS created, e.seq AS seq", filter, _BY_DATE, after, until, COUNTED + 1 - found
                )
            )
            if found > COUNTED:
                return Total(COUNTED, True)
        return Total(found, False)

    def counts(self, filter: Filter = EVERYTHING) -> dict[State, int]:
        """How many examples of each state the filter lets through, zeros included.

        Always exactly; what a search finds among many takes its time.
        """
        found = dict.fromkeys(STATES, 0)
        if filter.words:
            for row in self._column("state", filter):
                found[row[0]] += 1
            return found
        values = Parameters()
        where = filter.where(values.bind)
        sql = f"SELECT e.state, count(*) FROM examples e INDEXED BY {_BY_DATE.index} WHERE {where}"
        found.update((row[0], row[1]) for row in self._db.all(f"{sql} GROUP BY e.state", values))
        return found

    def ids(self, filter: Filter = EVERYTHING) -> list[str]:
        """The ids of all that the filter lets through, oldest first."""
        return [row[0] for row in self._column("id", filter)]

    def _column(self, name: str, filter: Filter) -> Iterator[sqlite3.Row]:
        """One column of all that the filter lets through, oldest first."""
        order = _ORDERS["oldest"]
        columns = f"e.{name} AS {name}, e.created AS created, e.seq AS seq"
        for after, until in self._slices(filter, order, None):
            yield from self._rows(columns, filter, order, after, until, SLICE)

    def each(self, filter: Filter = EVERYTHING) -> Iterator[Example]:
        """All that the filter lets through, oldest first. Holds a few in memory, and no lock in between."""
        order, after = _ORDERS["oldest"], None
        while rows := self._walk(filter, order, after, 100):
            after = order.position(rows[-1])
            yield from map(example_from, rows)

    def _walk(self, filter: Filter, order: _Order, after: Position | None, limit: int) -> list[sqlite3.Row]:
        """The next rows behind a position."""
        columns = "e.seq AS seq, " + ", ".join(f"e.{name} AS {name}" for name in COLUMNS.split(", "))
        if not filter.words:
            return self._rows(columns, filter, order, after, None, limit)
        found: list[sqlite3.Row] = []
        for start, end in self._slices(filter, order, after):
            found += self._rows(columns, filter, order, start, end, limit - len(found))
            if len(found) == limit:
                break
        return found

    def _slices(
        self, filter: Filter, order: _Order, after: Position | None
    ) -> Iterator[tuple[Position | None, Position | None]]:
        """Stretches of an order, (behind, up to), of which each has `SLICE` texts to look at."""
        while True:
            last = self._rows(
                ", ".join(f"e.{name} AS {name}" for name in order.columns),
                filter.anything,
                order,
                after,
                None,
                1,
                SLICE - 1,
            )
            end = order.position(last[0]) if last else None
            yield after, end
            if end is None:
                return
            after = end

    def _rows(
        self,
        columns: str,
        filter: Filter,
        order: _Order,
        after: Position | None,
        until: Position | None,
        limit: int,
        offset: int = 0,
    ) -> list[sqlite3.Row]:
        values = Parameters()
        starts, ends = order.ends
        # SQLite looks up one start and one end in an index: those of the position are the closer ones.
        unindexed = [name for name, bound in ((starts, after), (ends, until)) if bound is not None]
        conditions = filter.conditions(values.bind, unindexed)
        key = f"({', '.join(f'e.{name}' for name in order.columns)})"
        behind, up_to = ("<", ">=") if order.descending else (">", "<=")
        for sign, bound in ((behind, after), (up_to, until)):
            if bound is not None:
                conditions.append(f"{key} {sign} ({', '.join(map(values.bind, bound))})")
        parts = [
            f"SELECT {columns} FROM examples e INDEXED BY {order.index} {filter.joined}"
            f" WHERE {' AND '.join([f'e.state = {state!r}', *conditions])}"
            for state in filter.states or STATES
        ]
        direction = "DESC" if order.descending else "ASC"
        sorting = ", ".join(f"{name} {direction}" for name in order.columns)
        return self._db.all(
            f"{' UNION ALL '.join(parts)} ORDER BY {sorting}"
            f" LIMIT {values.bind(limit)} OFFSET {values.bind(offset)}",
            values,
        )


def _encode(mark: str, back: bool, position: Position) -> str:
    data = json.dumps([mark, back, *position], separators=(",", ":"))
    return base64.urlsafe_b64encode(data.encode()).decode().rstrip("=")


def _decode(cursor: str, mark: str, length: int) -> tuple[bool, Position]:
    """Direction and position of a cursor."""
    try:
        found, back, *position = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        # Whoever writes their own cursor gets other rows of their own list, or this error.
        if (
            found == mark
            and isinstance(back, bool)
            and len(position) == length
            and all(map(_number, position))
        ):
            return back, tuple(position)
    except (ValueError, TypeError, RecursionError):
        pass
    raise InvalidRequest("The cursor is not one of this list: start at its first page.", param="cursor")


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) < 2**63
