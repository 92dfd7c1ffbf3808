"""How long a daemon's event loop is held, and how much memory it takes, while a test does its worst."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from types import TracebackType

from daemons import Daemon

EVERY = 0.005
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Watch:
    """Asks `/health` again and again from a thread of its own: how long that takes, the loop was held.

    Attributes:
        longest: seconds that one answer took.
        spent: seconds of processor time that the loop's own thread took.
        grown: bytes by which the daemon's highest memory rose.
    """

    daemon: Daemon
    longest: float = 0.0
    spent: float = 0.0
    grown: int = 0
    asked: int = 0
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Watch:
        self._began, self._memory = _loop_seconds(self.daemon.pid), _highest_memory(self.daemon.pid)
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self.spent = _loop_seconds(self.daemon.pid) - self._began
        self.grown = _highest_memory(self.daemon.pid) - self._memory

    def __str__(self) -> str:
        return (
            f"the loop was held {self.longest * 1000:.0f} ms at most ({self.asked} times asked), "
            f"it computed {self.spent:.2f} s, memory rose by {self.grown / 1e6:.0f} MB"
        )

    def _ask(self) -> None:
        connection = HTTPConnection("127.0.0.1", self.daemon.port, timeout=120)
        while not self._over.is_set():
            began = time.perf_counter()
            connection.request("GET", "/health")
            assert connection.getresponse().read()
            self.longest = max(self.longest, time.perf_counter() - began)
            self.asked += 1
            self._over.wait(EVERY)
        connection.close()


def _loop_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/task/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _highest_memory(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
