"""Telling systemd how the daemon is: starting, ready, alive, reading its settings, stopping.

The protocol is one datagram to the socket that `NOTIFY_SOCKET` names; without it nothing is told. It
takes a few lines, stable for more than a decade, and no library of it that needs no compiler is still
looked after.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

_EXTENSION_SECONDS = 40.0
_EXTEND_EVERY = 10.0


def supervised() -> bool:
    """Whether somebody listens."""
    return bool(os.environ.get("NOTIFY_SOCKET"))


def watchdog_seconds() -> float | None:
    """How long this process may be silent until it is restarted; None when nobody watches."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    if not supervised() or not microseconds.isdigit() or microseconds == "0":
        return None
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(microseconds) / 1e6


def tell(*lines: str) -> None:
    """Send assignments such as `STATUS=…`. What cannot be sent is not worth stopping for."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    address = f"\0{path[1:]}" if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(1.0)
            sock.sendto("\n".join(lines).encode(), address)
    except OSError as error:
        logger.warning("systemd was not told %s: %s", lines[0], error)


class _Start:
    """A start under way: while it lasts, but no longer than its present step may take, it asks for more time.

    After a restart from within, systemd's watchdog goes on counting; it is asked for more time, too.
    """

    def __init__(self) -> None:
        self._over = threading.Event()
        self._until = 0.0
        self._thread: threading.Thread | None = None
        self.ready = False

    def step(self, what: str, at_most: float) -> None:
        if not supervised() or self.ready:
            return
        self._until = time.monotonic() + at_most
        tell(f"STATUS={what}", _extension())
        if self._thread is None:
            self._thread = threading.Thread(target=self._extend, name="starting", daemon=True)
            self._thread.start()

    def end(self) -> None:
        self._over.set()

    def _extend(self) -> None:
        while not self._over.wait(_EXTEND_EVERY):
            if time.monotonic() < self._until:
                tell(_extension())


_start = _Start()


def starting(what: str, at_most: float) -> None:
    """A step of the start begins; it may take so many seconds until it counts as hanging."""
    _start.step(what, at_most)


def ready(status: str) -> None:
    """Requests are answered from now on."""
    _start.end()
    _start.ready = True
    tell("READY=1", f"STATUS={status}", "WATCHDOG=1")


@contextmanager
def reloading() -> Iterator[None]:
    """Settings are read again meanwhile."""
    if not _start.ready:  # "ready" at the end would be too early
        yield
        return
    tell("RELOADING=1", _now())
    try:
        yield
    finally:
        tell("READY=1")


def stopping(*, restart: bool) -> None:
    """Requests are finished, and no others taken.

    Args:
        restart: the process starts anew: to systemd it is never down.
    """
    _start.end()
    if restart:
        tell("RELOADING=1", _now(), "STATUS=Starting anew", _extension(2))
    else:
        tell("STOPPING=1", "STATUS=Finishing the answers that have begun")


def _extension(times: int = 1) -> str:
    return f"EXTEND_TIMEOUT_USEC={int(_EXTENSION_SECONDS * times * 1e6)}"


def _now() -> str:
    return f"MONOTONIC_USEC={time.monotonic_ns() // 1000}"
