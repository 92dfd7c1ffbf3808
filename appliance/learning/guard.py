"""Whether the box can spare what a training run takes; if not, why, and when to ask again."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psutil

from appliance.hardware import read_hardware
from appliance.sections import ResourcesConfig

CAUSES = ("quiet_hours", "memory", "disk", "temperature", "battery", "load")
MB = 1024 * 1024
SPARE = 1.1
"""Memory that must be free for each MB that a run is expected to need."""


@dataclass(frozen=True)
class Deferral:
    """A run that does not start now.

    Attributes:
        reason: one sentence for a person.
        next_try: Unix time.
        causes: what is short, in one word each; see `CAUSES`.
    """

    reason: str
    next_try: float
    causes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Readings:
    """The state of the box; None where it has no such sensor.

    Attributes:
        load: one-minute load average per core.
        memory_mb: available memory, of the machine or of what this container may take.
        disk_mb: free on the home's file system.
        temperature: hottest sensor, in degrees Celsius.
        battery: charge in percent while running on battery.
    """

    load: float
    memory_mb: float
    disk_mb: float
    temperature: float | None
    battery: float | None


def read_resources(home: Path) -> Readings:
    """Ask the machine."""
    sensors: dict[str, Any] = getattr(psutil, "sensors_temperatures", dict)()
    # Broken sensors report 0 or nonsense such as 6,553 degrees.
    temperatures = [s.current for group in sensors.values() for s in group if 0 < s.current < 150]
    battery = getattr(psutil, "sensors_battery", lambda: None)()
    return Readings(
        load=os.getloadavg()[0] / (os.cpu_count() or 1),
        memory_mb=read_hardware().available / MB,
        disk_mb=psutil.disk_usage(os.fspath(home)).free / MB,
        temperature=max(temperatures, default=None),
        battery=battery.percent if battery is not None and not battery.power_plugged else None,
    )


def check_resources(
    config: ResourcesConfig, home: Path, *, person: bool = False, needs_mb: float = 0.0
) -> Deferral | None:
    """None when a run may start now that will need so much memory.

    A person who asks for a run is there to hear the fan: load and quiet hours don't stop that one.
    """
    return judge(read_resources(home), config, now=time.time(), person=person, needs_mb=needs_mb)


def judge(
    readings: Readings,
    config: ResourcesConfig,
    *,
    now: float,
    person: bool = False,
    needs_mb: float = 0.0,
) -> Deferral | None:
    """Compare readings with the limits; all that is short goes into the reason."""
    if not person and (end := quiet_until(config.quiet_hours, now)):
        return Deferral(f"It is a quiet hour ({config.quiet_hours}).", end, ("quiet_hours",))
    short: dict[str, str] = {}
    needed = max(config.min_free_memory_mb, round(needs_mb * SPARE))
    if readings.memory_mb < needed:
        short["memory"] = f"only {readings.memory_mb:.0f} MB of memory are free ({needed} needed)"
    if readings.disk_mb < config.min_free_disk_mb:
        short["disk"] = f"only {readings.disk_mb:.0f} MB of disk are free ({config.min_free_disk_mb} needed)"
    if readings.temperature is not None and readings.temperature > config.max_temperature_c:
        short["temperature"] = (
            f"a sensor reads {readings.temperature:.0f} °C (limit {config.max_temperature_c:g})"
        )
    if readings.battery is not None and readings.battery < config.min_battery_percent:
        short["battery"] = (
            f"the battery is at {readings.battery:.0f}% ({config.min_battery_percent:g}% needed)"
        )
    if not person and readings.load > config.max_load_per_core:
        short["load"] = f"the load per core is {readings.load:.1f} (limit {config.max_load_per_core:g})"
    if not short:
        return None
    reason = "; ".join(short.values())
    return Deferral(f"{reason[0].upper()}{reason[1:]}.", now + config.retry_minutes * 60, tuple(short))


def quiet_until(span: str, now: float) -> float | None:
    """End of the quiet hours when `now` lies in them. A span may cross midnight."""
    if not span:
        return None
    local = datetime.fromtimestamp(now).astimezone()
    first, last = (
        local.replace(hour=int(text[:2]), minute=int(text[3:]), second=0, microsecond=0)
        for text in span.split("-")
    )
    if first <= last:
        return last.timestamp() if first <= local < last else None
    if local >= first:
        return (last + timedelta(days=1)).timestamp()
    return last.timestamp() if local < last else None
