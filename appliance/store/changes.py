"""Changes of the owner's settings: who changed which key of config.toml from what to what, and when."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from appliance.errors import NotFound
from appliance.store.db import Database
from appliance.store.rows import from_json, to_json


@dataclass(frozen=True)
class Difference:
    """One key (`section.name`) and its values before and after."""

    key: str
    old: Any
    new: Any


@dataclass(frozen=True)
class Change:
    """What was saved at once.

    Attributes:
        undoes: the change that this one took back.
        undone: whether it has been taken back itself, and that still holds.
    """

    id: int
    at: float
    actor: str
    undoes: int | None
    differences: tuple[Difference, ...]
    undone: bool = False

    def touches(self, key: str) -> bool:
        """Whether it changed `key`."""
        return any(difference.key == key for difference in self.differences)


ChangeList: TypeAlias = list[Change]

_COLUMNS = "seq, at, actor, undoes, differences"


class Changes:
    """The table `changes`. Only people write it, so all of it is kept."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def add(self, actor: str, differences: Sequence[Difference], undoes: int | None = None) -> Change:
        """Write a change down."""
        rows = [[difference.key, difference.old, difference.new] for difference in differences]
        at = time.time()
        with self._db.transaction("changes") as tx:
            cursor = tx.execute(
                "INSERT INTO changes (at, actor, undoes, differences) VALUES (?, ?, ?, ?)",
                (at, actor, undoes, to_json(rows, "differences")),
            )
        return Change(int(cursor.lastrowid or 0), at, actor, undoes, tuple(differences))

    def get(self, change_id: int) -> Change:
        """One change.

        Raises:
            NotFound: there is none of that number.
        """
        known = 0 < change_id < 2**63  # the database has no larger numbers
        row = self._db.one(f"SELECT {_COLUMNS} FROM changes WHERE seq = ?", (change_id,)) if known else None
        if row is None:
            raise NotFound(f"There is no change {change_id}.", param="id")
        return _change(row, self._undone())

    def list(self, limit: int = 100, offset: int = 0) -> ChangeList:
        """A page of changes, newest first."""
        rows = self._db.all(
            f"SELECT {_COLUMNS} FROM changes ORDER BY seq DESC LIMIT ? OFFSET ?", (limit, offset)
        )
        undone = self._undone()
        return [_change(row, undone) for row in rows]

    def count(self) -> int:
        """How many there are."""
        return int(self._db.value("SELECT count(*) FROM changes"))

    def standing_after(self, change_id: int) -> ChangeList:
        """Later changes that still hold, newest first: a change and what took it back have left no trace."""
        undone = self._undone()
        rows = self._db.all(f"SELECT {_COLUMNS} FROM changes WHERE seq > ? ORDER BY seq DESC", (change_id,))
        later = [_change(row, undone) for row in rows]
        return [
            item for item in later if not item.undone and (item.undoes is None or item.undoes <= change_id)
        ]

    def _undone(self) -> frozenset[int]:
        """Changes that are taken back. An undo may be undone, too: the newest decides."""
        undone: set[int] = set()
        for row in self._db.all("SELECT seq, undoes FROM changes WHERE undoes IS NOT NULL ORDER BY seq DESC"):
            if row["seq"] not in undone:
                undone.add(row["undoes"])
        return frozenset(undone)


def _change(row: sqlite3.Row, undone: frozenset[int]) -> Change:
    differences = tuple(Difference(*item) for item in from_json(row["differences"]))
    return Change(row["seq"], row["at"], row["actor"], row["undoes"], differences, row["seq"] in undone)
