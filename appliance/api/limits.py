"""How often a device may ask: a bucket for each, in memory.

A bucket holds a minute's worth of requests and is filled evenly. So all of them may be used at once,
after a pause, and then one comes back every so often. A restart fills all buckets, which costs nobody
anything worth a row in the store.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from appliance.errors import RateLimited
from appliance.store.keys import Device

_FULL = 60.0
_RETURNED = 10.0
"""Times its rate that a device may be refused before that counts."""
_CLOSE = 1e-6
"""Sums of fractions are not exact; nobody is sent away for a microsecond."""


@dataclass
class _Bucket:
    """What it holds, in seconds: a request costs as many as it takes for one to come back.

    Attributes:
        seconds: so many.
        at: when that was.
        returns: what may still be given back for requests that were refused.
        cost: of the last request.
    """

    seconds: float
    at: float
    returns: float
    cost: float = 0.0


class Limits:
    """The buckets of all devices that are limited. Not thread-safe: it lives in the event loop."""

    def __init__(self) -> None:
        self._buckets: dict[str, _Bucket] = {}

    def take(self, device: Device, now: float | None = None, *, default: int = 0) -> None:
        """Let a request of the device pass, or not.

        Args:
            device: as the store has it now; a changed limit holds at once.
            now: seconds on a clock that does not jump; None for the present.
            default: requests a minute for a device that has no limit of its own; 0 for any number.

        Raises:
            RateLimited: it has to wait; refused requests cost it nothing.
        """
        rate = device.rate or default
        if not rate:
            self._buckets.pop(device.id, None)
            return
        now = time.monotonic() if now is None else now
        bucket = self._buckets.setdefault(device.id, _Bucket(_FULL, now, _RETURNED * _FULL))
        bucket.seconds = min(_FULL, bucket.seconds + now - bucket.at)
        bucket.returns = min(_RETURNED * _FULL, bucket.returns + _RETURNED * (now - bucket.at))
        bucket.at = now
        cost = _FULL / rate
        if (missing := cost - bucket.seconds) > _CLOSE:
            wait = math.ceil(missing - _CLOSE)
            raise RateLimited(
                f"{device.name!r} may send {rate} requests a minute; try again in {wait} s. "
                "The owner can change this limit.",
                retry_after=wait,
            )
        bucket.seconds -= cost
        bucket.cost = cost

    def give_back(self, device: Device) -> None:
        """A request that `take` let pass was refused for what it said: it does not count.

        Only so many in a minute, or a program that sends nonsense could do so without end.
        """
        bucket = self._buckets.get(device.id)
        if bucket is not None and bucket.returns >= bucket.cost:
            bucket.returns -= bucket.cost
            bucket.seconds = min(_FULL, bucket.seconds + bucket.cost)
