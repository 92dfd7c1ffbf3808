"""Taking out of a damaged database what can still be read.

A broken page takes with it the rows that lie on it, and the way to those behind it. Rows are read in their
order, and where that ends with an error it goes on a little further, by larger and larger steps. What is
read is checked by what the schema wants of it. It goes over what a backup has: a table that was read whole
takes the place of the backup's, of another one the rows that were read do.

The queue is known a second time, by its mirror (`mirror.py`).
"""

from __future__ import annotations

import json
import logging
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from appliance.errors import ShammahError
from appliance.store.db import Database
from appliance.store.example import Kind, NewExample
from appliance.store.examples import Examples
from appliance.store.mirror import FIELDS
from appliance.store.transfer import Line

logger = logging.getLogger(__name__)

DOUBTFUL = "its state was lost with a damaged store"
_DERIVED = "example_texts"
_JSON = frozenset({"messages", "masked", "report", "metrics", "detail", "differences", "models"})
_FARTHEST = 2**34

Row: TypeAlias = tuple[Any, ...]


@dataclass
class Salvaged:
    """What came of it.

    Attributes:
        rows: how many were read, by table.
        broken: tables of which not all could be read.
        queued: examples that only the queue's mirror had.
        doubtful: examples of the backup that are in the queue no more, and nobody knows why: excluded, so
            that they are not learned twice.
    """

    rows: dict[str, int] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    queued: int = 0
    doubtful: int = 0


def salvage(damaged: Path | None, database: Database, queue: Path) -> Salvaged:
    """Bring into a database, which may be a backup's, what can be read of a damaged one.

    Args:
        damaged: a copy of it, with its WAL beside it, that may be written to; None when there is nothing.
        database: sound, and of this release's schema.
        queue: the mirror; it may be missing.

    Raises:
        sqlite3.Error: what came of it does not fit together. Nothing was changed.
        StorageFull: there is no room for it. Nothing was changed.
    """
    found = Salvaged()
    with database.transaction("examples") as tx:
        tx.execute("PRAGMA defer_foreign_keys = ON")
        tables = [
            row[0]
            for row in tx.execute(
                "SELECT name FROM sqlite_schema"
                " WHERE type = 'table' AND name NOT LIKE 'sqlite%' AND name != ?",
                (_DERIVED,),
            )
        ]
        earlier = {
            row[0] for row in tx.execute("SELECT id FROM examples WHERE state IN ('pending', 'training')")
        }
        read: set[str] = set()
        if damaged is not None:
            with closing(sqlite3.connect(damaged)) as source:
                for table in tables:
                    _bring(source, tx, table, found, read)
        else:
            found.broken += tables
        _mend_references(tx)
        if "examples" in found.broken:
            _ask_the_queue(database, tx, queue, earlier - read, found)
        if "settings" in found.broken:  # sessions that were ended must not live again
            tx.execute("DELETE FROM settings WHERE key IN ('owner.sessions', 'owner.known')")
    return found


class _Table:
    """Reads the rows of a table that may be damaged.

    Attributes:
        whole: as far as it was read, nothing was in the way.
    """

    def __init__(
        self, source: sqlite3.Connection, name: str, columns: Sequence[str], key: Sequence[str]
    ) -> None:
        """Make one.

        Args:
            source: the damaged database.
            name: of the table.
            columns: to be read.
            key: the columns by which its rows lie; none when they lie by their number.
        """
        self._source = source
        self._name = name
        self._columns = ", ".join(columns)
        self._key = key
        self.whole = True

    def rows(self) -> Iterator[Row]:
        """What can be read. Some rows may come twice."""
        if self._key:
            return self._from_both_ends()
        return self._by_number()

    def _from_both_ends(self) -> Iterator[Row]:
        for direction in ("ASC", "DESC"):
            order = ", ".join(f"{column} {direction}" for column in self._key)
            try:
                yield from self._source.execute(
                    f"SELECT {self._columns} FROM {self._name} NOT INDEXED ORDER BY {order}"
                )
                return
            except sqlite3.DatabaseError:
                self.whole = False

    def _by_number(self) -> Iterator[Row]:
        place, step = -1, 1
        while step < _FARTHEST:
            try:
                for row in self._source.execute(
                    f"SELECT rowid, {self._columns} FROM {self._name} NOT INDEXED"
                    " WHERE rowid > ? ORDER BY rowid",
                    (place,),
                ):
                    place, step = row[0], 1
                    yield row[1:]
                return
            except sqlite3.DatabaseError:
                self.whole = False
                place += step
                step *= 2


def _bring(
    source: sqlite3.Connection, tx: sqlite3.Connection, table: str, found: Salvaged, read: set[str]
) -> None:
    """One table, from the damaged database into the good one; notes the ids of examples."""
    try:
        there = {row[1] for row in source.execute(f"PRAGMA table_info({table})")}
    except sqlite3.DatabaseError:  # not even the schema can be read
        there = set()
    described = [row for row in tx.execute(f"PRAGMA table_info({table})") if row[1] in there]
    if not described:
        found.broken.append(table)
        return
    columns = [row[1] for row in described]
    plain = tx.execute("SELECT sql NOT LIKE '%WITHOUT ROWID%' FROM sqlite_schema WHERE name = ?", (table,))
    key = (
        [] if plain.fetchone()[0] else [row[1] for row in sorted(described, key=lambda row: row[5]) if row[5]]
    )
    if whole := _readable(source, table, columns, key):
        tx.execute(f"DELETE FROM {table}")
    ident = columns.index("id") if table == "examples" else None
    checked = [index for index, name in enumerate(columns) if name in _JSON]
    insert = f"INSERT OR REPLACE INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
    count = 0
    for row in _Table(source, table, columns, key).rows():
        try:
            for index in checked:
                json.loads(row[index] or "null")
            tx.execute(insert, row)
        except (ValueError, TypeError, sqlite3.IntegrityError):  # what was read is not what was written
            whole = False
            continue
        count += 1
        if ident is not None:
            read.add(row[ident])
    found.rows[table] = count
    if not whole:
        found.broken.append(table)


def _readable(source: sqlite3.Connection, table: str, columns: Sequence[str], key: Sequence[str]) -> bool:
    reader = _Table(source, table, columns, key)
    for _ in reader.rows():
        if not reader.whole:
            break
    return reader.whole


def _mend_references(tx: sqlite3.Connection) -> None:
    """Let nothing name what could not be read."""
    tx.execute(
        "UPDATE examples SET run_id = NULL, state = CASE state WHEN 'training' THEN 'pending' ELSE state END"
        " WHERE run_id IS NOT NULL AND run_id NOT IN (SELECT id FROM runs)"
    )
    tx.execute(
        "UPDATE examples SET superseded_by = id"
        " WHERE superseded_by IS NOT NULL AND superseded_by NOT IN (SELECT id FROM examples)"
    )
    tx.execute("UPDATE rejected SET example_id = NULL WHERE example_id NOT IN (SELECT id FROM examples)")
    tx.execute("UPDATE changes SET undoes = NULL WHERE undoes NOT IN (SELECT seq FROM changes)")
    gone = "SELECT id FROM examples WHERE id IN (SELECT example_id FROM forgotten)"
    tx.execute(f"UPDATE examples SET superseded_by = id WHERE superseded_by IN ({gone})")
    tx.execute(f"UPDATE rejected SET example_id = NULL WHERE example_id IN ({gone})")
    tx.execute(f"DELETE FROM examples WHERE id IN ({gone})")


def _ask_the_queue(
    database: Database, tx: sqlite3.Connection, queue: Path, unsure: set[str], found: Salvaged
) -> None:
    """Add what only the mirror has, and take out what is in the queue no more.

    Args:
        database: where, in a transaction.
        tx: that.
        queue: the mirror.
        unsure: ids that wait according to the backup, and could not be read.
        found: gets the counts.
    """
    lines = _queue_lines(queue)
    if lines is None:
        return
    now = time.time()
    known = {row[0] for row in tx.execute("SELECT id FROM examples UNION SELECT example_id FROM forgotten")}
    examples = Examples(database)
    for line in lines:
        if line.id not in known:
            try:
                examples.add(_example(line), id=line.id, created=min(line.created or now, now))
            except ShammahError as error:  # before the transaction knows of it
                logger.warning("A line of %s cannot be used: %s", queue.name, error)
                continue
            known.add(line.id)
            found.queued += 1
    for ident in unsure - {line.id for line in lines}:
        found.doubtful += tx.execute(
            "UPDATE examples SET state = 'excluded', run_id = NULL, note = ? WHERE id = ?", (DOUBTFUL, ident)
        ).rowcount


def _queue_lines(queue: Path) -> list[Line] | None:
    """The mirror's lines, without what a crash tore or the disk spoilt; None when there is no mirror."""
    try:
        data = queue.read_bytes()
    except OSError:
        return None
    found = []
    for text in data.split(b"\n"):  # of the text, `splitlines` would tear lines apart within an answer
        try:
            entry = json.loads(text)
            given = {name: entry[name] for name in FIELDS if entry.get(name) is not None}
            found.append(Line.model_validate({"kind": _kind(entry), **given}))
        except (ValueError, AttributeError, RecursionError):
            if text.strip():
                logger.warning("A line of %s cannot be read", queue.name)
    return found


def _kind(entry: dict[str, Any]) -> Kind:
    """What a line of the mirror means."""
    if entry.get("correction") is not None:
        return "correction"
    if entry.get("rating") == "down" or entry.get("feedback"):
        return "critique"
    return "praise" if entry.get("rating") == "up" else "automatic"


def _example(line: Line) -> NewExample:
    """What is stored of it. A draft for a critique is not in the mirror: the model makes another."""
    taught = line.kind == "critique"
    given = {name: getattr(line, name) for name in FIELDS if name not in ("id", "created", "messages")}
    return NewExample(
        kind=line.kind,
        target=None if taught else line.correction or line.response,
        state="review" if taught else "pending",
        messages=[message.model_dump() for message in line.messages],
        **given,
    )
