"""The in-process event bus: learning progress, swaps and health, for whoever listens.

Publishers (engine thread, learning threads, request handlers) never wait for listeners.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Event:
    """Something that happened.

    Attributes:
        name: dotted, past tense or state (`run.progress`, `adapter.promoted`); see docs/api.md.
        data: JSON-serialisable details.
        at: Unix time in seconds.
    """

    name: str
    data: Mapping[str, Any] = field(default_factory=dict)
    at: float = field(default_factory=time.time)


class EventBus:
    """Thread-safe fan-out. Keeps the last `history` events for pages that open later."""

    def __init__(self, history: int = 200) -> None:
        self._lock = threading.Lock()
        self._listeners: list[Callable[[Event], None]] = []
        self._history: deque[Event] = deque(maxlen=history)

    def publish(self, name: str, **data: Any) -> None:
        """Tell every listener, in the caller's thread. A listener must be quick and not raise."""
        event = Event(name, data)
        with self._lock:
            self._history.append(event)
            listeners = list(self._listeners)
        for listener in listeners:
            listener(event)

    def listen(self, listener: Callable[[Event], None]) -> Callable[[], None]:
        """Add a listener; returns the function that removes it."""
        with self._lock:
            self._listeners.append(listener)

        def remove() -> None:
            with self._lock:
                if listener in self._listeners:
                    self._listeners.remove(listener)

        return remove

    def recent(self) -> list[Event]:
        """The last events, oldest first."""
        with self._lock:
            return list(self._history)

    async def stream(self) -> AsyncIterator[Event]:
        """Events from now on. A consumer that falls 1,000 behind loses the oldest."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Event] = asyncio.Queue(maxsize=1000)

        def push(event: Event) -> None:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(event)

        def forward(event: Event) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(push, event)

        remove = self.listen(forward)
        try:
            while True:
                yield await queue.get()
        finally:
            remove()
