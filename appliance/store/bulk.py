"""What the console does to many examples at once: taking them out, changing their weight.

Only what still waits for a run is changed. What a run holds is its own, what has been learned can only
be forgotten, and what was superseded or excluded has ended.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

from appliance.errors import InvalidRequest
from appliance.store.db import Database
from appliance.store.example import MAX_WEIGHT, State
from appliance.store.filter import Filter, Parameters
from appliance.store.rows import to_json, valid_text

Which: TypeAlias = Filter | Iterable[str]
"""What is meant: all that a filter lets through at that moment, or examples by id."""

WAITING: tuple[State, ...] = ("pending", "review", "parked")
LEFT: dict[str, str] = {
    "training": "held by a run",
    "used": "learned already",
    "superseded": "superseded",
    "excluded": "excluded already",
}
"""Why an example of that state is left alone."""
UNKNOWN = "unknown"
"""Why an id is left alone that no example has (any more)."""


@dataclass(frozen=True)
class Changed:
    """What came of it.

    Attributes:
        count: how many were changed.
        left: how many were left alone, by reason.
    """

    count: int
    left: dict[str, int]


class Bulk:
    """Writes many rows of the table `examples`, each call in one transaction."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def exclude(self, which: Which, note: str = "excluded") -> Changed:
        """Take examples out for good: no run will learn them. What people rejected stays rejected.

        Args:
            which: the examples.
            note: why, for whoever looks at them later.

        Raises:
            InvalidRequest: the note is not valid Unicode.
        """
        return self._change(which, "state = 'excluded', run_id = NULL, note = {}", valid_text(note, "note"))

    def set_weight(self, which: Which, weight: float) -> Changed:
        """Change how much examples count.

        Raises:
            InvalidRequest: the weight is not above 0 and up to `MAX_WEIGHT`.
        """
        if not 0 < weight <= MAX_WEIGHT:
            raise InvalidRequest(f"`weight` is above 0 and up to {MAX_WEIGHT:g}.", param="weight")
        return self._change(which, "weight = {}, revision = revision + 1", float(weight))

    def _change(self, which: Which, assignments: str, value: Any) -> Changed:
        values = Parameters()
        ids: set[str] = set()
        if isinstance(which, Filter):
            meant = f"FROM examples e {which.joined} WHERE {which.where(values.bind)}"
        else:
            ids = {*which}
            meant = (
                "FROM examples e WHERE e.id IN"
                f" (SELECT value FROM json_each({values.bind(to_json([*ids], 'ids'))}))"
            )
        with self._db.transaction("examples") as tx:
            states = dict(tx.execute(f"SELECT e.state, count(*) {meant} GROUP BY e.state", values).fetchall())
            change = f"UPDATE examples SET {assignments.format(values.bind(value))}"
            changed = tx.execute(
                f"{change} WHERE seq IN (SELECT e.seq {meant} AND e.state IN {WAITING})", values
            ).rowcount
        left = {LEFT[state]: count for state, count in states.items() if state in LEFT}
        if ids and (unknown := len(ids) - sum(states.values())):
            left[UNKNOWN] = unknown
        return Changed(changed, left)
