"""The in-process event bus: learning progress, swaps and health, for whoever listens.

Publishers (engine thread, learning threads, request handlers) never wait for listeners.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Event:
    """Something that happened.

    Attributes:
        name: dotted, past tense or state (`run.progress`, `adapter.promoted`); see docs/observability.md.
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
        self._count = 0

    @property
    def count(self) -> int:
        """Events published since the start."""
        return self._count

    def publish(self, name: str, **data: Any) -> None:
        """Tell every listener, in the caller's thread. A listener must be quick and not raise."""
        event = Event(name, data)
        with self._lock:
            self._history.append(event)
            self._count += 1
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
