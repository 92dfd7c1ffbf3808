"""How much the box was asked in the last 24 hours, drawn for Home."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from appliance.console.charts import Axis, Series, bar_chart, line_chart, plain
from appliance.console.devices import beginnings
from appliance.console.render import when
from appliance.store.usage import HOUR, UsagePoint


@dataclass(frozen=True)
class Usage:
    """The last 24 hours of all devices.

    Attributes:
        requests: how many in all.
        tokens: read and written.
        speed: tokens written a second of waiting, as devices felt it; None when nothing was asked.
        charts: requests by the hour, and speed.
    """

    requests: int
    tokens: int
    speed: float | None
    charts: tuple[Markup, ...]


def usage(ctx: Any) -> Usage:
    """Read and draw it. Blocking."""
    ctx.meter.flush()
    day, _ = beginnings()
    points: list[UsagePoint] = ctx.store.usage.series(day, HOUR)
    time = Axis("Hour", lambda at: when(at, "short"))
    requests = bar_chart(
        "Requests by the hour",
        [(point.at, point.requests) for point in points],
        time,
        Axis("Requests", plain, whole=True),
    )
    speeds = [(point.at, point.speed or math.nan) for point in points]
    speed = line_chart(
        "Tokens a second",
        [Series("Tokens a second", speeds)],
        time,
        Axis("Tokens a second", plain),
        from_zero=True,
        marks=True,
    )
    seconds = sum(point.seconds for point in points)
    written = sum(point.completion_tokens for point in points)
    return Usage(
        requests=sum(point.requests for point in points),
        tokens=sum(point.tokens for point in points),
        speed=written / seconds if seconds else None,
        charts=(requests, speed),
    )
