"""What the box has left: processor, memory, disk, heat."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from appliance.hardware import cpu_quota, cpu_seconds, read_hardware


@dataclass(frozen=True)
class Resources:
    """One reading. Sizes in bytes, shares from 0 to 1, temperature in °C; None is what cannot be told."""

    cpu: float | None
    cores: int
    load: float
    memory_used: int
    memory_total: int
    process_memory: int
    disk_used: int
    disk_total: int
    temperature: float | None


_FRESH_SECONDS = 2.0
_STALE_SECONDS = 30.0
_NAP_SECONDS = 0.1


@dataclass(frozen=True)
class _Times:
    """Seconds of processor so far.

    Attributes:
        at: when, on a clock that never jumps.
        busy: of the machine's processors.
        total: of these, with the idle ones.
        group: of this process's group; None when that is not told.
    """

    at: float
    busy: float
    total: float
    group: float | None


def _times() -> _Times:
    # Not `psutil.cpu_percent`: it compares with the last call of the same thread, and each page is gathered
    # by another one, which had never looked before (0 %) or did so an hour ago.
    told = psutil.cpu_times()
    total = sum(told) - getattr(told, "guest", 0.0) - getattr(told, "guest_nice", 0.0)
    idle = told.idle + getattr(told, "iowait", 0.0)
    return _Times(time.monotonic(), total - idle, total, cpu_seconds())


def _share(before: _Times, now: _Times, quota: float) -> float | None:
    """What part of the processors was busy between two looks: of those that this box may use."""
    elapsed = now.at - before.at
    if (
        quota < (psutil.cpu_count() or 1)
        and now.group is not None
        and before.group is not None
        and elapsed > 0
    ):
        return min((now.group - before.group) / (elapsed * quota), 1.0)
    if now.total <= before.total:  # some containers are told nothing
        return None
    return min(max((now.busy - before.busy) / (now.total - before.total), 0.0), 1.0)


# A share of the processor is measured between two readings: far enough apart to mean something,
# however many pages are open, and not so far that it is of another time.
_lock = threading.Lock()
_last: tuple[float, Resources] | None = None
_looked = _times()


def read_resources(path: Path) -> Resources:
    """The sensors' present values, read every two seconds at most. `path` says which disk matters."""
    global _last
    with _lock:
        now = time.monotonic()
        if _last is None or now - _last[0] > _FRESH_SECONDS:
            _last = (now, _read(path))
        return _last[1]


def _read(path: Path) -> Resources:
    global _looked
    hardware = read_hardware()
    if time.monotonic() - _looked.at > _STALE_SECONDS:
        _looked = _times()
        time.sleep(_NAP_SECONDS)
    before, _looked = _looked, _times()
    disk = psutil.disk_usage(str(path))
    return Resources(
        cpu=_share(before, _looked, cpu_quota()),
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
