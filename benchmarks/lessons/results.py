"""Rows as they come, in a file that survives being cut off, and what the table makes of them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hardware import processor

from appliance.files import write_atomic
from lessons.bench import Row

Key = tuple[Any, ...]


class Results:
    """Keeps rows in memory and, when there is a file, on disk after each."""

    def __init__(self, file: Path | None, about: dict[str, Any]) -> None:
        """Go on with what the file holds."""
        self._file = file
        self._about = {"processor": processor(), "cores": os.cpu_count(), **about}
        self.rows = load([file]) if file and file.exists() else []

    def begin(self, **key: Any) -> None:
        """Drop what an earlier start found for these very fields (scenario, seed, ...)."""
        self.rows = [row for row in self.rows if any(row.get(name) != key[name] for name in key)]

    def add(self, row: Row) -> None:
        """Keep a row."""
        self.rows.append({**row, **self._about, "date": datetime.now(UTC).isoformat(timespec="seconds")})
        if self._file:
            write_atomic(self._file, json.dumps(self.rows, indent=1, ensure_ascii=False) + "\n", mode=0o644)


def load(files: Iterable[Path]) -> list[Row]:
    """The rows of several files."""
    return [row for file in files for row in json.loads(file.read_text(encoding="utf-8"))]


def chosen(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    """Those rows in which these fields have these values."""
    return [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]


def share(rows: Sequence[Row], field: str) -> float | None:
    """Of [right, asked] pairs, all together; None when nothing was asked."""
    pairs = [row[field] for row in rows if field in row]
    asked = sum(pair[1] for pair in pairs)
    return sum(pair[0] for pair in pairs) / asked if asked else None


def mean(rows: Sequence[Row], field: str) -> float | None:
    """Over the rows that have the field."""
    values = [row[field] for row in rows if row.get(field) is not None]
    return sum(values) / len(values) if values else None


def most(rows: Sequence[Row], field: str) -> float | None:
    """The worst of the rows that have the field."""
    return max((row[field] for row in rows if row.get(field) is not None), default=None)
