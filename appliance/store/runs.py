"""Training runs: one row for each attempt, from queue to verdict."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias, cast, get_args

from appliance.errors import NotFound
from appliance.store.db import Database
from appliance.store.rows import from_json, to_json, update_row

RunState = Literal[
    "queued", "training", "gating", "promoted", "accepted", "rejected", "failed", "cancelled", "parked"
]
RUN_STATES: tuple[RunState, ...] = get_args(RunState)
Trigger = Literal["threshold", "timeout", "person", "retry"]


@dataclass(frozen=True)
class Run:
    """One training attempt.

    Attributes:
        id: `run_<UTC time>`; also the name of its directory under `runs/`.
        state: "accepted" when its adapter passed the gate and waits, because what is in service is pinned.
        examples: how many it was given.
        adapter: the file it produced, if it did.
        parent: the adapter it started from.
        reason: why it ended as it did, for a person.
        attempt: 1, or more when a run on the same examples died before.
        report: the gate's verdict.
        metrics: what the trainer measured; `left_out` counts the examples it was not given, by reason;
            `resumed` lists the steps from which it went on after it was cut off; `paused` is there while it
            waits for the start after an orderly stop, and `parts` counts those it has come to by that;
            `failed` the checks that failed; `retry_of` names the run whose examples it tried again;
            `judged_again` counts how often its gate was killed and began again.
        pid: the child process, while there is one.
    """

    id: str
    created: float
    trigger: Trigger
    state: RunState
    started: float | None
    ended: float | None
    examples: int
    adapter: str | None
    parent: str | None
    reason: str | None
    attempt: int
    report: dict[str, Any] | None
    metrics: dict[str, Any] | None
    pid: int | None


RunList: TypeAlias = list[Run]
LossList: TypeAlias = list[tuple[float, float, float]]

_COLUMNS = ", ".join(Run.__dataclass_fields__)
_CHANGEABLE = ("state", "started", "ended", "examples", "adapter", "parent", "reason", "attempt", "report",
               "metrics", "pid")  # fmt: skip


def _run(row: sqlite3.Row) -> Run:
    fields = {**dict(row), "report": from_json(row["report"]), "metrics": from_json(row["metrics"])}
    return Run(**fields)


class Runs:
    """The table `runs`."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def create(self, trigger: Trigger, examples: int, parent: str | None = None, attempt: int = 1) -> Run:
        """A new run in state "queued"."""
        now = time.time()
        stem = f"run_{datetime.fromtimestamp(now, UTC):%Y%m%dT%H%M%SZ}"
        with self._db.transaction("runs") as tx:
            run_id, number = stem, 1
            while tx.execute("SELECT 1 FROM runs WHERE id = ?", (run_id,)).fetchone():
                number += 1
                run_id = f"{stem}-{number}"
            tx.execute(
                "INSERT INTO runs (id, created, trigger, state, examples, parent, attempt)"
                " VALUES (?, ?, ?, 'queued', ?, ?, ?)",
                (run_id, now, trigger, examples, parent, attempt),
            )
            return self.get(run_id)

    def get(self, run_id: str) -> Run:
        """The run of that id.

        Raises:
            NotFound: there is none.
        """
        row = self._db.one(f"SELECT {_COLUMNS} FROM runs WHERE id = ?", (run_id,))
        if row is None:
            raise NotFound(f"There is no run {run_id!r}.", param="id")
        return _run(row)

    def list(self, limit: int = 50, offset: int = 0, state: RunState | None = None) -> RunList:
        """A page of runs, of one state or of all, newest first."""
        condition = "" if state is None else "WHERE state = ?3"
        rows = self._db.all(
            f"SELECT {_COLUMNS} FROM runs {condition} ORDER BY seq DESC LIMIT ?1 OFFSET ?2",
            (limit, offset) if state is None else (limit, offset, state),
        )
        return [_run(row) for row in rows]

    def counts(self) -> dict[RunState, int]:
        """How many runs there are of each state, zeros included."""
        found = dict.fromkeys(RUN_STATES, 0)
        for row in self._db.all("SELECT state, count(*) FROM runs GROUP BY state"):
            found[cast("RunState", row[0])] = row[1]
        return found

    def heldout(self, limit: int) -> LossList:
        """Of the last runs that measured it, oldest first: when, and the held-out loss before and after."""
        rows = self._db.all(
            "SELECT created, json_extract(metrics, '$.heldout_before') AS before,"
            " json_extract(metrics, '$.heldout_after') AS after FROM runs"
            " WHERE typeof(before) IN ('real', 'integer') AND typeof(after) IN ('real', 'integer')"
            " ORDER BY seq DESC LIMIT ?",
            (limit,),
        )
        return [(row[0], row[1], row[2]) for row in reversed(rows)]

    def retries(self, run_id: str) -> RunList:
        """The runs that tried the examples of that one again, oldest first."""
        rows = self._db.all(
            f"SELECT {_COLUMNS} FROM runs WHERE seq > (SELECT seq FROM runs WHERE id = ?1)"
            " AND trigger IN ('person', 'retry') AND json_extract(metrics, '$.retry_of') = ?1 ORDER BY seq",
            (run_id,),
        )
        return [_run(row) for row in rows]

    def update(self, run_id: str, **fields: Any) -> Run:
        """Change fields of a run; `report` and `metrics` take dictionaries.

        Raises:
            NotFound: there is no such run.
        """
        values = {
            name: to_json(value, name) if name in ("report", "metrics") and value is not None else value
            for name, value in fields.items()
        }
        with self._db.transaction("runs") as tx:
            update_row(tx, "runs", ("id", run_id), values, _CHANGEABLE)
            return self.get(run_id)

    def unfinished(self) -> RunList:
        """Runs without a verdict, oldest first: going on now, or cut off by a crash."""
        rows = self._db.all(
            f"SELECT {_COLUMNS} FROM runs WHERE state IN ('queued', 'training', 'gating') ORDER BY seq"
        )
        return [_run(row) for row in rows]

    def examples(self, run_ids: Collection[str]) -> int:
        """How many examples these runs were given in all."""
        return int(
            self._db.value(
                "SELECT total(examples) FROM runs WHERE id IN (SELECT value FROM json_each(?))",
                (json.dumps([*run_ids]),),
            )
        )

    def count(self) -> int:
        """How many runs there have been."""
        return int(self._db.value("SELECT count(*) FROM runs"))
