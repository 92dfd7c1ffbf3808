"""The database read, and nothing else: not migrated, not locked, no file made. For who looks after a box."""

from __future__ import annotations

import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from appliance.errors import ShammahError, Unavailable
from appliance.store.db import BUSY_SECONDS, Database
from appliance.store.migrations import STEPS

PROBLEMS = 5
_TIMES = (("examples", "created"), ("runs", "created"), ("completions", "created"), ("audit", "at"))


@dataclass(frozen=True)
class Inspection:
    """What a look at the file found.

    Attributes:
        schema: the last step of the schema that was applied to it.
        known: the last step that this release knows.
        problems: what is damaged, a line each; empty when nothing is.
        orphans: rows that refer to others which are not there.
    """

    schema: int
    known: int
    problems: tuple[str, ...]
    orphans: int


class ReadOnlyDatabase(Database):
    """A database file as it is. Any write fails."""

    def __init__(self, path: Path) -> None:
        """Open it.

        Raises:
            Unavailable: it is not there, cannot be read, or is no database.
        """
        self.path = path
        self._write_lock = threading.RLock()
        self._read_lock = threading.Lock()
        self._owner = None
        self._failed = False
        self._touched = set()
        self._listeners = []
        # Without a write-ahead log nobody has it open, and SQLite would make one to read it: so it is
        # told that nothing changes.
        wal = path.with_name(f"{path.name}-wal")
        how = "mode=ro" if wal.exists() else "mode=ro&immutable=1"
        try:
            self._reader = sqlite3.connect(
                f"file:{quote(str(path))}?{how}",
                uri=True,
                timeout=BUSY_SECONDS,
                isolation_level=None,
                check_same_thread=False,
            )
            self._reader.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        except sqlite3.Error as error:
            raise Unavailable(f"{path} cannot be read: {error}.") from error
        self._reader.row_factory = sqlite3.Row
        self._writer = self._reader


def schema(database: Database) -> tuple[int, int]:
    """The schema of the file, and the one that this release works with."""
    return int(database.value("PRAGMA user_version")), len(STEPS)


def inspect(path: Path, *, thorough: bool) -> Inspection:
    """Look for damage: at every page and index, or, not thoroughly, at the pages alone.

    Raises:
        Unavailable: it cannot be read at all.
    """
    database = ReadOnlyDatabase(path)
    try:
        found, known = schema(database)
        pragma = "integrity_check" if thorough else "quick_check"
        try:
            rows = [str(row[0]) for row in database.all(f"PRAGMA {pragma}({PROBLEMS})")]
            orphans = len(database.all("PRAGMA foreign_key_check"))
        except (ShammahError, sqlite3.Error) as error:
            return Inspection(found, known, (str(error),), 0)
        problems = () if rows == ["ok"] else tuple(line for row in rows for line in row.splitlines())
        return Inspection(found, known, problems[:PROBLEMS], orphans)
    finally:
        database.close()


def newest(database: Database) -> float | None:
    """The latest time that any row was written at; None for a database without rows."""
    each = " UNION ALL ".join(f"SELECT max({column}) AS at FROM {table}" for table, column in _TIMES)
    found = database.value(f"SELECT max(at) FROM ({each})")
    return None if found is None else float(found)
