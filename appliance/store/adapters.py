"""What is known about adapter files, and the history of which one was in service."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from appliance.errors import NotFound
from appliance.store.db import Database
from appliance.store.rows import from_json, to_json

AdapterState = Literal["candidate", "accepted", "rejected", "missing", "deleted"]


@dataclass(frozen=True)
class AdapterRow:
    """An adapter file and the gate's word on it.

    Attributes:
        name: the file's stem.
        base_hash: the bundle it belongs to.
        run_id: the run that made it; None for a file a person put there.
        parent: the adapter it was trained from.
        state: the gate's verdict; "missing" and "deleted" say that there is no file any more, and in the
            second case that the owner wanted it so.
        report: the gate's report.
        withdrawn: why the box took a file of this content out of service by itself; it does not put it
            in again, but a person may.
    """

    name: str
    created: float
    sha256: str
    size: int
    base_hash: str
    rank: int
    run_id: str | None
    parent: str | None
    state: AdapterState
    report: dict[str, Any] | None
    withdrawn: str | None = None


@dataclass(frozen=True)
class Switch:
    """A change of the adapter in service; None is the base model."""

    at: float
    from_: str | None
    to: str | None
    reason: str
    actor: str


AdapterRows: TypeAlias = list[AdapterRow]
Waiting: TypeAlias = list[tuple[str, str | None]]
Switches: TypeAlias = list[Switch]

_OWN = [name for name in AdapterRow.__dataclass_fields__ if name != "withdrawn"]
_COLUMNS = ", ".join(_OWN)
_ASSIGN = ", ".join(f"{name} = excluded.{name}" for name in _OWN if name != "name")
_SELECT = (
    f"SELECT {_COLUMNS}, (SELECT reason FROM withdrawn w WHERE w.sha256 = adapters.sha256) AS withdrawn"
    " FROM adapters"
)


def _row(row: sqlite3.Row) -> AdapterRow:
    return AdapterRow(**{**dict(row), "report": from_json(row["report"])})


class Adapters:
    """The tables `adapters`, `switches`, `barred` and `withdrawn`."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def upsert(self, adapter: AdapterRow) -> None:
        """Store what is known about a file, replacing what was known under its name."""
        values = {name: getattr(adapter, name) for name in _OWN}
        values["report"] = None if adapter.report is None else to_json(adapter.report, "report")
        with self._db.transaction("adapters") as tx:
            tx.execute(
                f"INSERT INTO adapters ({_COLUMNS}) VALUES ({', '.join('?' * len(values))})"
                f" ON CONFLICT (name) DO UPDATE SET {_ASSIGN}",
                tuple(values.values()),
            )

    def get(self, name: str) -> AdapterRow | None:
        """What is known about an adapter; None when nothing is."""
        row = self._db.one(f"{_SELECT} WHERE name = ?", (name,))
        return None if row is None else _row(row)

    def list(self, *, reports: bool = True) -> AdapterRows:
        """All adapters, newest first; without their reports, which are long, when these are not wanted."""
        select = _SELECT if reports else _SELECT.replace("report", "NULL AS report", 1)
        rows = self._db.all(f"{select} ORDER BY created DESC, name DESC")
        return [_row(row) for row in rows]

    def accepted(self, base_hash: str, limit: int, also: Iterable[str] = ()) -> AdapterRows:
        """The newest adapters of a base that passed the gate, newest first; `also` however old they are."""
        rows = self._db.all(
            f"{_SELECT} WHERE state = 'accepted' AND base_hash = ?"
            " AND (name IN (SELECT value FROM json_each(?)) OR name IN (SELECT name FROM adapters"
            " WHERE state = 'accepted' AND base_hash = ? ORDER BY created DESC, name DESC LIMIT ?))"
            " ORDER BY created DESC, name DESC",
            (base_hash, json.dumps([*also]), base_hash, limit),
        )
        return [_row(row) for row in rows]

    def count_by_base(self) -> dict[str, int]:
        """How many adapters there are for each base, those whose file is gone left out."""
        rows = self._db.all(
            "SELECT base_hash, count(*) FROM adapters WHERE state != 'missing' GROUP BY base_hash"
        )
        return {str(base): int(count) for base, count in rows}

    def of_content(self, sha256: str) -> AdapterRows:
        """Those whose file has, or had, that content; newest first."""
        rows = self._db.all(f"{_SELECT} WHERE sha256 = ? ORDER BY created DESC", (sha256,))
        return [_row(row) for row in rows]

    def waiting(self, base_hash: str) -> Waiting:
        """Name and parent of those that runs made and left waiting, oldest first.

        Args:
            base_hash: of the bundle they have to fit.
        """
        rows = self._db.all(
            "SELECT a.name, a.parent FROM runs r JOIN adapters a ON a.name = r.adapter AND a.run_id = r.id"
            " WHERE r.state = 'accepted' AND a.state = 'accepted' AND a.base_hash = ?"
            " AND a.sha256 NOT IN (SELECT sha256 FROM withdrawn) ORDER BY r.seq",
            (base_hash,),
        )
        return [(row["name"], row["parent"]) for row in rows]

    def put_in_service(self, name: str) -> None:
        """Note that this one waits no longer, nor what it grew from: what they learned is in service."""
        with self._db.transaction("runs") as tx:
            tx.execute(
                "WITH RECURSIVE line (name, run_id, parent) AS ("
                " SELECT name, run_id, parent FROM adapters WHERE name = ?"
                " UNION SELECT a.name, a.run_id, a.parent FROM adapters a JOIN line ON a.name = line.parent)"
                " UPDATE runs SET state = 'promoted' WHERE state = 'accepted'"
                " AND id IN (SELECT run_id FROM line)",
                (name,),
            )

    def set_state(self, name: str, state: AdapterState, report: dict[str, Any] | None = None) -> None:
        """Record a verdict; without a report the earlier one stays.

        Raises:
            NotFound: nothing is known under that name.
        """
        text = None if report is None else to_json(report, "report")
        with self._db.transaction("adapters") as tx:
            changed = tx.execute(
                "UPDATE adapters SET state = ?, report = coalesce(?, report) WHERE name = ?",
                (state, text, name),
            ).rowcount
            if not changed:
                raise NotFound(f"There is no adapter {name!r}.", param="name")

    def bar(self, names: Iterable[str]) -> None:
        """Never serve these again: they are rejected, and so is a copy of their files under any name."""
        wanted = json.dumps([*names])
        with self._db.transaction("adapters", "barred") as tx:
            tx.execute(
                "INSERT OR IGNORE INTO barred (sha256, adapter, at)"
                " SELECT sha256, name, ? FROM adapters WHERE name IN (SELECT value FROM json_each(?))",
                (time.time(), wanted),
            )
            tx.execute(
                "UPDATE adapters SET state = 'rejected' WHERE name IN (SELECT value FROM json_each(?))",
                (wanted,),
            )

    def barred(self, sha256: str) -> bool:
        """Whether a file of that content may never serve again."""
        return self._db.one("SELECT 1 FROM barred WHERE sha256 = ?", (sha256,)) is not None

    def withdraw(self, name: str, sha256: str, reason: str) -> None:
        """Note that a file did not stand the test of service: no file of its content is promoted unasked."""
        with self._db.transaction("adapters", "withdrawn") as tx:
            tx.execute(
                "INSERT OR REPLACE INTO withdrawn (sha256, adapter, reason, at) VALUES (?, ?, ?, ?)",
                (sha256, name, reason, time.time()),
            )

    def is_withdrawn(self, name: str) -> bool:
        """Whether the file of that name is one that did not stand the test."""
        row = self._db.one(
            "SELECT 1 FROM adapters a JOIN withdrawn w ON w.sha256 = a.sha256 WHERE a.name = ?", (name,)
        )
        return row is not None

    def reinstate(self, sha256: str) -> None:
        """Forget that a file was withdrawn: a person wants it all the same."""
        with self._db.transaction("adapters", "withdrawn") as tx:
            tx.execute("DELETE FROM withdrawn WHERE sha256 = ?", (sha256,))

    def record_switch(self, to: str | None, reason: str, actor: str) -> Switch:
        """Note that `to` is in service from now on, instead of what the last switch led to."""
        with self._db.transaction("switches") as tx:
            last = tx.execute("SELECT to_ FROM switches ORDER BY seq DESC LIMIT 1").fetchone()
            switch = Switch(time.time(), None if last is None else last[0], to, reason, actor)
            tx.execute(
                "INSERT INTO switches (at, from_, to_, reason, actor) VALUES (?, ?, ?, ?, ?)",
                (switch.at, switch.from_, switch.to, switch.reason, switch.actor),
            )
        return switch

    def switches(self, limit: int = 50) -> Switches:
        """The last switches, newest first."""
        rows = self._db.all(
            "SELECT at, from_, to_, reason, actor FROM switches ORDER BY seq DESC LIMIT ?", (limit,)
        )
        return [Switch(*row) for row in rows]
