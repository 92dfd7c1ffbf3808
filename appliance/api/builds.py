"""Weights that are not at hand are built: seconds of processor and a model's memory, at one request's word.

So each client may cause only so many builds, one is made at a time, who asks for what is being built waits
for that one, and what lingers because somebody is still answered by it counts too.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from appliance.engine.session import Session
from appliance.errors import Busy, RateLimited

AT_ONCE = 6
"""So many builds a client may cause one after another; then one every `SECONDS`."""
SECONDS = 20.0
WAITING = 4
"""More different weights than this are not waited for at once."""
LINGERING = 2
"""With so many sessions replaced that still answer somebody, no other is built at a device's word."""
_MOST_CLIENTS = 10_000


class Builds:
    """The builds of sessions that requests cause. Lives in the event loop.

    Attributes:
        made: how many there have been.
    """

    def __init__(self, lingering: Callable[[], int]) -> None:
        """Nothing is built yet.

        Args:
            lingering: how many sessions are kept only because they still answer somebody.
        """
        self.made = 0
        self._lingering = lingering
        self._going: dict[str, asyncio.Task[Session]] = {}
        self._one = asyncio.Lock()
        self._clients: OrderedDict[str, float] = OrderedDict()
        """By client: when all of its builds will have come back."""

    async def get(self, client: str | None, weights: str, build: Callable[[], Awaitable[Session]]) -> Session:
        """The session with these weights, built once for all who ask for it meanwhile.

        Args:
            client: who asks; None for the owner, whom nothing but the machine limits.
            weights: what identifies them.
            build: makes it.

        Raises:
            RateLimited: this client has caused too many builds.
            Busy: too many others are waited for, or linger.
            Unavailable: it cannot be built.
        """
        task = self._going.get(weights)
        if task is None:
            if client is not None:
                self._take(client)
            task = asyncio.create_task(self._build(build), name=f"session {weights[:12]}")
            self._going[weights] = task
            task.add_done_callback(lambda done: self._done(weights, done))
        # Who leaves must not end it for the others; and what is begun is paid for.
        return await asyncio.shield(task)

    async def _build(self, build: Callable[[], Awaitable[Session]]) -> Session:
        async with self._one:
            self.made += 1
            return await build()

    def _done(self, weights: str, task: asyncio.Task[Session]) -> None:
        self._going.pop(weights, None)
        if not task.cancelled():
            task.exception()  # seen, even if nobody waits any more

    def _take(self, client: str) -> None:
        if len(self._going) >= WAITING or self._lingering() >= LINGERING:
            raise Busy("Other models are being made ready or still answer. Retry in a few seconds.")
        now = time.monotonic()
        back = max(now, self._clients.get(client, now)) + SECONDS
        if (wait := back - now - AT_ONCE * SECONDS) > 0:
            seconds = math.ceil(wait)
            raise RateLimited(
                "A model that is not in service has to be made ready first; that was asked for too often. "
                f"Try again in {seconds} s, or stay with one model.",
                retry_after=seconds,
            )
        self._clients[client] = back
        self._clients.move_to_end(client)
        if len(self._clients) > _MOST_CLIENTS:
            self._clients.popitem(last=False)
