"""What this machine can give a model: memory, cores, how fast memory is read; limits of its group count."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

GROUPS = Path("/sys/fs/cgroup")
PROC = Path("/proc")
MEASURED_BYTES = 128 * 2**20
"""Of each thread: more than caches hold, and read in some milliseconds."""
MEASURED_SECONDS = 0.4
_NO_LIMIT = 2**60


@dataclass(frozen=True)
class Hardware:
    """What there is.

    Attributes:
        memory: bytes of it, or of the limit that this process's group has.
        available: bytes of it that nobody uses now.
        limited: a limit is below what the machine has.
        cores: physical ones that this process may use.
        processors: how much time it may use, in processors; less than cores where its group has a quota.
        threads: that a model would compute with.
        bandwidth: bytes a second that so many threads read; 0 when it was not measured.
    """

    memory: int
    available: int
    limited: bool
    cores: int
    processors: float
    threads: int
    bandwidth: float = 0.0


def read_hardware(pid: int | None = None, *, measure: bool = False) -> Hardware:
    """Look, and, if wanted, measure for half a second.

    Args:
        pid: the process whose limits count; this one by default.
        measure: how fast memory is read, too.
    """
    memory = psutil.virtual_memory()
    limit, used = memory_limit(pid)
    total = min(memory.total, limit)
    available = min(memory.available, max(limit - used, 0)) if limit < memory.total else memory.available
    allowed, physical = _cores(pid)
    threads = default_threads(pid)
    return Hardware(
        memory=total,
        available=available,
        limited=limit < memory.total,
        cores=physical,
        processors=min(cpu_quota(pid), float(allowed)),
        threads=threads,
        bandwidth=read_bandwidth(threads) if measure else 0.0,
    )


def default_threads(pid: int | None = None) -> int:
    """Threads to compute with: physical cores that a process may use, at least two where there are two.

    Fewer, if this process's environment says so (`OMP_NUM_THREADS`, as programs that compute have it).

    Args:
        pid: the process; this one by default.
    """
    allowed, physical = _cores(pid)
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # outermost level first
    most = int(wanted) if wanted.isdecimal() and int(wanted) else allowed
    return max(1, min(allowed, max(2, physical), most))


def _cores(pid: int | None) -> tuple[int, int]:
    """How many processors a process may use, and how many of the physical ones."""
    allowed = len(os.sched_getaffinity(pid or 0))
    return allowed, min(psutil.cpu_count(logical=False) or allowed, allowed)


def memory_limit(pid: int | None = None, groups: Path = GROUPS, proc: Path = PROC) -> tuple[int, int]:
    """The lowest limit of memory on the way from the root to a process's group, and what is used of it.

    In bytes. Without a limit the first is larger than any machine.
    """
    lowest, used = _NO_LIMIT, 0
    for place in _places(pid, "memory", groups, proc):
        for limit_name, used_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit = _number(place / limit_name)
            if limit is not None and limit < lowest:
                lowest, used = limit, _number(place / used_name) or 0
                used -= min(used, _cached(place))
    return lowest, used


def cpu_quota(pid: int | None = None, groups: Path = GROUPS, proc: Path = PROC) -> float:
    """Processors whose time a process's group may use; infinite without a quota."""
    lowest = float("inf")
    for place in _places(pid, "cpu", groups, proc):
        with suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = (place / "cpu.max").read_text().split()
            lowest = min(lowest, int(quota) / int(period))
        quota_us, period_us = _number(place / "cpu.cfs_quota_us"), _number(place / "cpu.cfs_period_us")
        if quota_us and period_us and quota_us > 0:
            lowest = min(lowest, quota_us / period_us)
    return lowest


def cpu_seconds(pid: int | None = None, groups: Path = GROUPS, proc: Path = PROC) -> float | None:
    """Seconds of processor that a process's group has used, all its programs together; None if not told."""
    for place in _places(pid, "cpu", groups, proc)[:1]:
        with suppress(OSError, ValueError):
            told = dict(line.split() for line in (place / "cpu.stat").read_text().splitlines())
            if "usage_usec" in told:
                return int(told["usage_usec"]) / 1e6
    for place in _places(pid, "cpuacct", groups, proc)[:1]:
        if (used := _number(place / "cpuacct.usage")) is not None:
            return used / 1e9
    return None


def resident(pid: int | None) -> float:
    """Bytes of memory that a process takes; 0 for none."""
    if pid is None:
        return 0.0
    try:
        return float(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0.0


def read_bandwidth(threads: int) -> float:
    """Bytes a second that the threads together read, the best of some passes."""
    with ThreadPoolExecutor(threads) as pool:
        # Written by the thread that reads it, so that its pages are near.
        arrays = list(pool.map(lambda _: np.ones(MEASURED_BYTES // 8, np.uint64), range(threads)))
        best, end = float("inf"), time.perf_counter() + MEASURED_SECONDS
        while time.perf_counter() < end:
            began = time.perf_counter()
            list(
                pool.map(np.bitwise_or.reduce, arrays)
            )  # lets go of the interpreter, and computes next to nothing
            best = min(best, time.perf_counter() - began)
    return threads * MEASURED_BYTES / best


def _places(pid: int | None, controller: str, groups: Path, proc: Path) -> list[Path]:
    """Directories of a process's group and of those above it, in both hierarchies that Linux has."""
    try:
        lines = (proc / str(pid or "self") / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = groups / controllers if controllers else groups
        if not root.is_dir():
            root = groups / controller
        place = root / path.lstrip("/")
        # A container sees its own group as the root, but may be told its path on the host.
        while place != root and not place.is_dir():
            place = place.parent
        found += [place, *(parent for parent in place.parents if parent == root or root in parent.parents)]
    return list(dict.fromkeys(found))


def _cached(place: Path) -> int:
    """Bytes of files that the group keeps in memory and that go when it needs the room."""
    with suppress(OSError, ValueError):
        for line in (place / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name in ("inactive_file", "total_inactive_file"):
                return int(value)
    return 0


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # not there, or "max"
        return None
