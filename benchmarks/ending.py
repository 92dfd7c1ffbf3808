"""How a benchmark that is told to stop ends."""

from __future__ import annotations

import signal
import sys


def end_by_exception() -> None:
    """Have SIGTERM end by an exception: children, servers and homes go too, and nothing interrupts that."""
    signal.signal(signal.SIGTERM, _stop)


def _stop(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)
