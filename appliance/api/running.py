"""Which devices are being answered, so that one whose key is revoked is cut off in the middle of an answer.

The command revokes keys in a process of its own, so nobody here is told. While a device with a key is being
answered, and only then, the store is asked a few times a second whether anything was written at all (that
costs microseconds), and only if so, whether the keys are still good.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from appliance.errors import ShammahError, Unauthorized
from appliance.store import Store
from appliance.store.keys import Device

logger = logging.getLogger(__name__)

CHECK_SECONDS = 0.25


class Running:
    """The answers under way, by device. Lives in the event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._ends: dict[str, set[asyncio.Timeout]] = {}
        self._watch: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def answering(self, device: Device | None) -> AsyncIterator[None]:
        """Run the block as long as the device's key is good.

        Raises:
            Unauthorized: the key was revoked meanwhile.
        """
        if device is None:
            yield
            return
        try:
            async with asyncio.timeout(None) as end:
                self._begin(device.id, end)
                try:
                    yield
                finally:
                    self._end(device.id, end)
        except TimeoutError as error:
            if not end.expired():
                raise
            raise Unauthorized("This API key was revoked while its request was answered.") from error

    def _begin(self, device: str, end: asyncio.Timeout) -> None:
        self._ends.setdefault(device, set()).add(end)
        if self._watch is None:
            self._watch = asyncio.get_running_loop().create_task(self._look(), name="revoked keys")

    def _end(self, device: str, end: asyncio.Timeout) -> None:
        self._ends[device].discard(end)
        if not self._ends[device]:
            del self._ends[device]

    async def _look(self) -> None:
        """Until nobody with a key is answered any more."""
        seen: int | None = None  # what was written before this began is looked at, too
        while self._ends:
            try:
                seen, revoked = await asyncio.to_thread(self._revoked, seen, list(self._ends))
            except ShammahError as error:  # a store that is locked for a moment
                logger.warning("Whether keys were revoked cannot be seen for now: %s", error)
            else:
                self._cut_off(revoked)
            await asyncio.sleep(CHECK_SECONDS)
        self._watch = None

    def _revoked(self, seen: int | None, devices: list[str]) -> tuple[int, frozenset[str]]:
        """(the store's version, which of the devices have lost their key). Nothing written, none lost."""
        version = self._store.database.data_version()
        if version == seen:
            return version, frozenset()
        return version, frozenset(devices) - self._store.keys.good(devices)

    def _cut_off(self, revoked: frozenset[str]) -> None:
        now = asyncio.get_running_loop().time()
        for device in revoked:
            for end in self._ends.get(device, ()):
                if not end.expired():
                    end.reschedule(now)
