"""The event loop's pulse: a task that wants to be woken every second, and notes how late that is.

A loop that is late makes every stream stutter; one that does not turn answers nobody. Other threads see the
latter by the time of the last beat; who asks through the loop itself gets no answer.
"""

from __future__ import annotations

import asyncio
import time

from prometheus_client import Histogram

from appliance.failpoints import failpoint

SECONDS = 1.0


class Pulse:
    """Beats while the event loop turns.

    Attributes:
        lag: how late each beat was.
        beats: how many there were.
    """

    def __init__(self) -> None:
        self.lag = Histogram(
            "shammah_event_loop_lag_seconds",
            "How late the event loop is: measured once a second.",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30),
            registry=None,
        )
        self.beats = 0
        self._last = 0.0
        self._task: asyncio.Task[None] | None = None

    @property
    def silent_seconds(self) -> float:
        """How long a beat has been overdue; 0 while all is well, or when it does not run."""
        if self._task is None or self._task.done():
            return 0.0
        return max(time.monotonic() - self._last - SECONDS, 0.0)

    def start(self) -> None:
        """Beat from now on, in this event loop."""
        self._last = time.monotonic()
        self._task = asyncio.get_running_loop().create_task(self._beat(), name="pulse")

    def stop(self) -> None:
        """Beat no more."""
        if self._task is not None:
            self._task.cancel()

    async def _beat(self) -> None:
        while True:
            due = time.monotonic() + SECONDS
            await asyncio.sleep(SECONDS)
            failpoint("loop.turn")
            self._last = now = time.monotonic()
            self.beats += 1
            self.lag.observe(max(now - due, 0.0))
