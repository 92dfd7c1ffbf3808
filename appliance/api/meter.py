"""The meter: counts what is asked while requests run, and writes it down every few seconds.

A transaction for each request would cost each a flush of the disk. So what was asked is gathered in
memory, a figure for each device and hour; a kill loses the last seconds of it, which are only numbers.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from appliance.api.answer import Answer
from appliance.store import Store
from appliance.store.keys import Device
from appliance.store.usage import HOUR, KEYLESS, UsagePoint, floor

log = logging.getLogger(__name__)

FLUSH_SECONDS = 5.0


class Meter:
    """Counts requests and tokens by device; a thread of its own writes them down."""

    def __init__(self, store: Store, every: float = FLUSH_SECONDS) -> None:
        self._store = store
        self._every = every
        self._counted: dict[tuple[str, int], UsagePoint] = {}
        self._writing = threading.Lock()
        self._condition = threading.Condition()
        self._stopping = False
        self._failed = False
        self._thread = threading.Thread(target=self._work, name="meter", daemon=True)
        self._thread.start()

    @contextmanager
    def answering(self, device: Device | None, answer: Answer) -> Iterator[None]:
        """Count a request when the block ends, even if the client has left by then."""
        began = time.monotonic()
        try:
            yield
        finally:
            usage = answer.usage
            self._count(
                device,
                requests=1,
                prompt_tokens=usage["prompt_tokens"],
                completion_tokens=usage["completion_tokens"],
                seconds=time.monotonic() - began,
            )

    def refused(self, device: Device) -> None:
        """Count a request over the device's limit."""
        self._count(device, refused=1)

    def flush(self) -> None:
        """Write down what has been counted so far; never raises.

        What the disk has no room for is kept for the next time.
        """
        with self._writing:
            with self._condition:
                counted, self._counted = self._counted, {}
            if not counted:
                return
            try:
                self._store.usage.add((device, point) for (device, _), point in counted.items())
                self._failed = False
            except Exception as error:  # no reason to stop counting, or to bother who asked
                if not self._failed:
                    log.warning("Usage cannot be written down for now: %s", error)
                self._failed = True
                with self._condition:
                    for key, point in counted.items():
                        self._add(key, point)

    def stop(self) -> None:
        """Write down the rest and end the thread."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        self._thread.join()
        self.flush()

    def _count(
        self,
        device: Device | None,
        *,
        requests: int = 0,
        prompt_tokens: int = 0,
        completion_tokens: int = 0,
        seconds: float = 0.0,
        refused: int = 0,
    ) -> None:
        hour = floor(time.time(), HOUR)
        point = UsagePoint(hour, requests, prompt_tokens, completion_tokens, seconds, refused)
        with self._condition:
            self._add((KEYLESS if device is None else device.id, hour), point)
            self._condition.notify()

    def _add(self, key: tuple[str, int], point: UsagePoint) -> None:
        before = self._counted.get(key)
        self._counted[key] = point if before is None else before + point

    def _work(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._counted or self._stopping)
                self._condition.wait_for(lambda: self._stopping, self._every)
                if self._stopping:
                    return
            self.flush()
