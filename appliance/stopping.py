"""SIGTERM and SIGINT, obeyed from the daemon's first moment.

By default the first ends a process without a word, which looks like a model that the box does not survive;
and for the first process of a container, the kernel drops both until there is a handler. The exception that
ends a start may also meet code that cannot pass it on (a finalizer), so the signal is noted as well.
"""

from __future__ import annotations

import signal
from types import FrameType

STOPS = (signal.SIGTERM, signal.SIGINT)

_noted: list[int] = []


def heed() -> None:
    """From now on either signal ends the start in an orderly way. The server has its own handlers later."""
    for number in STOPS:
        signal.signal(number, _end)


def noted() -> bool:
    """Whether one came, and the start went on all the same."""
    return bool(_noted)


def _end(number: int, frame: FrameType | None) -> None:
    _noted.append(number)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(0)
