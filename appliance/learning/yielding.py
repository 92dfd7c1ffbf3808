"""Who computes now: requests are served first, and a run takes what they leave and a little more.

While requests are active a child program stands still. It is stopped from outside (SIGSTOP), which
works at once, wherever in a step it is, and for any program; asked to pause between its steps it
would compete with the prompt of the very request it is to make room for. It holds no lock that the
daemon could wait for, and keeps its memory. If the daemon dies meanwhile, the kernel ends it: a
stopped process group that loses its parent gets SIGHUP.

A box that is always busy shall learn too. So there is credit: a share of the time with requests,
spent in slices long enough to get something done.
"""

from __future__ import annotations

from collections.abc import Callable

LINGER = 0.5
"""Seconds without a request until the box counts as idle: the next often follows at once."""
SLICE = 2.0
"""Seconds of credit that a program goes on with among requests."""


class Yielding:
    """Decides, for one program after the other, whether it stands still."""

    def __init__(self, busy: Callable[[], bool], share: float) -> None:
        """Make one.

        Args:
            busy: whether requests are active.
            share: of the time with requests that the program may compute; 1 is no yielding.
        """
        self._busy = busy
        self._share = share
        self._seen: float | None = None
        self._last: float | None = None
        self._credit = 0.0
        self._slice = False

    def stands_still(self, now: float) -> bool:
        """Whether it should, to be asked many times a second.

        Args:
            now: seconds of a clock that never jumps.
        """
        elapsed = 0.0 if self._last is None else now - self._last
        self._last = now
        if self._busy():
            self._seen = now
        if self._share >= 1 or self._seen is None or now - self._seen >= LINGER:
            self._slice = False
            return False
        credit = self._credit + elapsed * self._share - (elapsed if self._slice else 0.0)
        self._credit = min(credit, SLICE)  # what was not asked about for long is no credit
        self._slice = self._credit > 0 if self._slice else self._credit >= SLICE
        return not self._slice
