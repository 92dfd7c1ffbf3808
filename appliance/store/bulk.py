"""What the console does to many examples at once: taking out, putting back, changing their weight.

Only what still waits for a run is taken out or changed. What a run holds is its own, what has been learned
can only be forgotten, and what was superseded has ended.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

from appliance.errors import InvalidRequest
from appliance.store.db import Database
from appliance.store.example import MAX_WEIGHT, State
from appliance.store.examples import DRAFTED, NOT_REJECTED
from appliance.store.filter import Filter, Parameters
from appliance.store.rows import to_json, valid_text

Which: TypeAlias = Filter | Iterable[str]
"""What is meant: all that a filter lets through at that moment, or examples by id."""

WAITING: tuple[State, ...] = ("pending", "review", "parked")
OUT: tuple[State, ...] = ("parked", "excluded")
LEFT: dict[str, str] = {
    "pending": "in the queue already",
    "review": "in review already",
    "parked": "parked",
    "training": "held by a run",
    "used": "learned already",
    "superseded": "superseded",
    "excluded": "excluded already",
}
"""Why an example of that state is left alone."""
REPLACED = "replaced, or its answer rejected, since"
"""Why an example that was taken out does not come back."""
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
        change = "state = 'excluded', run_id = NULL, note = {}"
        return self._change(which, WAITING, change, valid_text(note, "note"))

    def set_weight(self, which: Which, weight: float) -> Changed:
        """Change how much examples count.

        Raises:
            InvalidRequest: the weight is not above 0 and up to `MAX_WEIGHT`.
        """
        if not 0 < weight <= MAX_WEIGHT:
            raise InvalidRequest(f"`weight` is above 0 and up to {MAX_WEIGHT:g}.", param="weight")
        return self._change(which, WAITING, "weight = {}, revision = revision + 1", float(weight))

    def put_back(self, which: Which) -> Changed:
        """Let examples wait again that were excluded, or parked with a run that failed.

        An excluded critique waits for the owner's word first. What people have replaced or rejected in
        the meantime stays out.
        """
        return self._change(
            which,
            OUT,
            f"state = CASE WHEN target IS NULL OR {DRAFTED} OR (kind = 'critique' AND state = 'excluded')"
            " THEN 'review' ELSE 'pending' END,"
            " note = CASE state WHEN 'excluded' THEN {} ELSE note END, run_id = NULL, left_out = NULL",
            None,
            f"e.superseded_by IS NULL AND {NOT_REJECTED}",
        )

    def _change(
        self, which: Which, states: tuple[State, ...], assignments: str, value: Any, condition: str = "TRUE"
    ) -> Changed:
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
            found = dict(tx.execute(f"SELECT e.state, count(*) {meant} GROUP BY e.state", values).fetchall())
            change = f"UPDATE examples SET {assignments.format(values.bind(value))}"
            changed = tx.execute(
                f"{change} WHERE seq IN (SELECT e.seq {meant} AND e.state IN {states} AND {condition})",
                values,
            ).rowcount
        left = {LEFT[state]: count for state, count in found.items() if state not in states}
        if refused := sum(found.get(state, 0) for state in states) - changed:
            left[REPLACED] = refused
        if ids and (unknown := len(ids) - sum(found.values())):
            left[UNKNOWN] = unknown
        return Changed(changed, left)
