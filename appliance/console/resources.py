"""What the box has left: processor, memory, disk, heat."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from appliance.hardware import read_hardware


@dataclass(frozen=True)
class Resources:
    """One reading. Sizes in bytes, shares from 0 to 1, temperature in °C."""

    cpu: float
    cores: int
    load: float
    memory_used: int
    memory_total: int
    process_memory: int
    disk_used: int
    disk_total: int
    temperature: float | None


_FRESH_SECONDS = 2.0
# A share of the processor is measured between two readings: far enough apart to mean something,
# however many pages are open.
_lock = threading.Lock()
_last: tuple[float, Resources] | None = None
psutil.cpu_percent(interval=None)


def read_resources(path: Path) -> Resources:
    """The sensors' present values, read every two seconds at most. `path` says which disk matters."""
    global _last
    with _lock:
        now = time.monotonic()
        if _last is None or now - _last[0] > _FRESH_SECONDS:
            _last = (now, _read(path))
        return _last[1]


def _read(path: Path) -> Resources:
    hardware = read_hardware()
    disk = psutil.disk_usage(str(path))
    return Resources(
        cpu=psutil.cpu_percent(interval=None) / 100,
        cores=psutil.cpu_count() or 1,
        load=os.getloadavg()[0],
        memory_used=hardware.memory - hardware.available,
        memory_total=hardware.memory,
        process_memory=psutil.Process().memory_info().rss,
        disk_used=disk.total - disk.free,
        disk_total=disk.total,
        temperature=_hottest(),
    )


def _hottest() -> float | None:
    sensors = getattr(psutil, "sensors_temperatures", None)
    readings = [entry.current for group in (sensors() if sensors else {}).values() for entry in group]
    plausible = [reading for reading in readings if 0 < reading < 150]
    return max(plausible) if plausible else None
