"""What every table family does with rows: JSON columns, valid text, checked updates."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Collection, Mapping
from typing import Any

from appliance.errors import InvalidRequest


def to_json(value: Any, param: str) -> str:
    """`value` as compact JSON.

    Raises:
        InvalidRequest: it holds something that has no place in JSON, or broken Unicode.
    """
    try:
        return valid_text(
            json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")), param
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"`{param}` cannot be stored as JSON: {error}.", param=param) from error


def from_json(text: str | None) -> Any:
    """The value of a JSON column; None for NULL."""
    return None if text is None else json.loads(text)


def valid_text(text: str, param: str) -> str:
    """`text` itself, once it is known to be encodable.

    Raises:
        InvalidRequest: it holds half of a surrogate pair (JSON's escapes allow to send one).
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"`{param}` is not valid Unicode.", param=param) from error
    return text


def finite(value: float, param: str) -> float:
    """`value` itself, once it is known to be a finite number."""
    if not math.isfinite(value):
        raise InvalidRequest(f"`{param}` must be a finite number.", param=param)
    return value


def update_row(
    connection: sqlite3.Connection,
    table: str,
    where: tuple[str, str],
    fields: Mapping[str, Any],
    allowed: Collection[str],
) -> bool:
    """Set columns of one row, named by `where` (column, value). Says whether the row exists.

    Raises:
        TypeError: a field is not one of `allowed`, which is what keeps names out of the SQL text.
    """
    unknown = set(fields) - set(allowed)
    if unknown:
        raise TypeError(f"{table} has no changeable field {', '.join(sorted(unknown))}")
    column, key = where
    if not fields:
        return connection.execute(f"SELECT 1 FROM {table} WHERE {column} = ?", (key,)).fetchone() is not None
    columns = ", ".join(f"{name} = ?" for name in fields)
    changed = connection.execute(
        f"UPDATE {table} SET {columns} WHERE {column} = ?", (*fields.values(), key)
    ).rowcount
    return changed > 0
