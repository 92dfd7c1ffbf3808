"""How much was asked: requests and tokens by hour and device. Numbers only, nothing of what was said."""

from __future__ import annotations

import sqlite3
import time
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from datetime import time as clock

from appliance.store.db import Database

HOUR = 3600
DAY = 24 * HOUR
KEPT_DAYS = 400
"""A year can be compared with the one before; a device that asks at all hours costs a megabyte for that."""
KEYLESS = ""
"""Stands for what was asked without a device's key: on the box itself, where none is needed."""


@dataclass(frozen=True)
class UsagePoint:
    """What was asked in a span of time.

    Attributes:
        at: when the span begins.
        requests: those the model was given, answered to the end or not.
        prompt_tokens: read, those found in the prefix cache too.
        completion_tokens: written, over all choices.
        seconds: for how long somebody waited for these, each request from its beginning to its last token.
        refused: requests over the device's limit.
    """

    at: float
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    refused: int = 0

    @property
    def tokens(self) -> int:
        """Read and written."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def speed(self) -> float:
        """Tokens written a second while somebody waited; 0 when nothing was."""
        return self.completion_tokens / self.seconds if self.seconds > 0 else 0.0

    def __add__(self, other: UsagePoint) -> UsagePoint:
        """Both together, from where this one begins."""
        return UsagePoint(
            self.at,
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.seconds + other.seconds,
            self.refused + other.refused,
        )


_COUNTED = ("requests", "prompt_tokens", "completion_tokens", "seconds", "refused")
_COLUMNS = ", ".join(_COUNTED)
_SUMS = ", ".join(f"sum({name}) AS {name}" for name in _COUNTED)
_ADDED = ", ".join(f"{name} = {name} + excluded.{name}" for name in _COUNTED)


class Usage:
    """The table `usage`: a row for each hour in which a device asked something."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def add(self, counted: Iterable[tuple[str, UsagePoint]]) -> None:
        """Count what devices (by id, or `KEYLESS`) asked, each in the hour of its point, in one transaction.

        What is older than `KEPT_DAYS` is dropped.
        """
        rows = [
            (floor(point.at, HOUR), device, *(getattr(point, name) for name in _COUNTED))
            for device, point in counted
        ]
        with self._db.transaction("usage") as tx:
            tx.executemany(
                f"INSERT INTO usage (at, device, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)"
                f" ON CONFLICT (at, device) DO UPDATE SET {_ADDED}",
                rows,
            )
            tx.execute("DELETE FROM usage WHERE at < ?", (floor(time.time(), HOUR) - KEPT_DAYS * DAY,))

    def totals(self, since: float) -> dict[str, UsagePoint]:
        """What each device that asked has asked, from the hour of `since` on."""
        start = floor(since, HOUR)
        rows = self._db.all(f"SELECT device, {_SUMS} FROM usage WHERE at >= ? GROUP BY device", (start,))
        return {row["device"]: _point(start, row) for row in rows}

    def series(self, since: float, bucket_seconds: int, device: str | None = None) -> list[UsagePoint]:
        """Usage over time: a point for each bucket from that of `since` to the present one, empty ones too.

        Args:
            since: how far to go back.
            bucket_seconds: whole hours. Buckets begin at multiples of it since 1970, so that days are UTC's.
            device: of which device; None for all together, `KEYLESS` for what came without a key.
        """
        if bucket_seconds < HOUR or bucket_seconds % HOUR:
            raise ValueError(f"usage is known by the hour, not by {bucket_seconds} seconds")
        start = floor(since, bucket_seconds)
        mine, values = ("", ()) if device is None else (" AND device = ?", (device,))
        rows = self._db.all(
            f"SELECT at / ? * ? AS bucket, {_SUMS} FROM usage WHERE at >= ?{mine} GROUP BY bucket",
            (bucket_seconds, bucket_seconds, start, *values),
        )
        found = {row["bucket"]: _point(row["bucket"], row) for row in rows}
        buckets = range(start, int(time.time()) + 1, bucket_seconds)
        return [found.get(at) or UsagePoint(at) for at in buckets]

    def days(self, count: int, zone: tzinfo, device: str | None = None) -> list[UsagePoint]:
        """Usage of the last days, as days are in a zone: today's last, empty ones too.

        What was asked in an hour that holds a midnight, where clocks are half an hour apart, counts to the
        day in which that hour began.
        """
        today = datetime.now(zone).date()
        begins = [
            datetime.combine(today - timedelta(days=back), clock(), zone).timestamp()
            for back in range(count - 1, -1, -1)
        ]
        mine, values = ("", ()) if device is None else (" AND device = ?", (device,))
        rows = self._db.all(
            f"SELECT at, {_SUMS} FROM usage WHERE at >= ?{mine} GROUP BY at", (begins[0], *values)
        )
        found = [UsagePoint(at) for at in begins]
        for row in rows:
            place = bisect_right(begins, row["at"]) - 1
            found[place] += _point(row["at"], row)
        return found


def floor(at: float, seconds: int) -> int:
    """When the span of so many seconds that holds `at` began."""
    return int(at // seconds) * seconds


def _point(at: float, row: sqlite3.Row) -> UsagePoint:
    return UsagePoint(at, *(row[name] for name in _COUNTED))
