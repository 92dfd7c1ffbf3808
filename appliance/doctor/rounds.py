"""Examinations of a box that runs: a quick one now and then, a whole one when the owner wants it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from appliance import __version__
from appliance.config import Config
from appliance.doctor.box import Standing, looked_at, written_down
from appliance.doctor.examine import Report, examine
from appliance.engine.engine import Engine
from appliance.errors import Conflict
from appliance.events import EventBus
from appliance.home import Home
from appliance.learning.service import Learning

logger = logging.getLogger(__name__)

FRESH_SECONDS = 600.0
"""A quick look counts for so long."""
TELL_SECONDS = 0.3


@dataclass(frozen=True)
class UnderWay:
    """A whole examination that is going on: since when, what is looked at, and how much is done."""

    began: float
    title: str = ""
    fraction: float = 0.0


class Rounds:
    """Keeps what the last examinations found. Thread-safe."""

    def __init__(self, home: Home, events: EventBus, standing: Callable[[], Standing | None]) -> None:
        """Make it.

        Args:
            home: what is looked at.
            events: where progress is told, and that the number of errors changed.
            standing: what the daemon has to say of itself.
        """
        self._home = home
        self._events = events
        self._standing = standing
        self._lock = threading.Lock()
        self._under_way: UnderWay | None = None
        self._looking = False
        self._last: Report | None = None
        self._whole: Report | None = None
        self._told = 0.0
        self._began = 0.0
        """When the examination began whose report is the last."""

    @property
    def under_way(self) -> UnderWay | None:
        """The whole examination that is going on, if one is."""
        return self._under_way

    def latest(self) -> Report | None:
        """What the last examination found; one that is too old is made again behind the caller's back."""
        with self._lock:
            last = self._last
            stale = last is None or time.time() - last.at > FRESH_SECONDS
            begin = stale and not self._looking and self._under_way is None
            self._looking = self._looking or begin
        if begin:
            threading.Thread(target=self._look_aside, name="doctor", daemon=True).start()
        return last

    @property
    def whole(self) -> Report | None:
        """What the last whole examination found, if there was one since the start."""
        return self._whole

    def look(self) -> Report:
        """Make a quick examination now. Blocking."""
        return self._examine(quick=True)

    def begin(self) -> None:
        """Begin a whole examination.

        Raises:
            Conflict: one is going on.
        """
        with self._lock:
            if self._under_way is not None:
                raise Conflict("The box is being examined already.")
            self._under_way = UnderWay(time.time())
        threading.Thread(target=self._carry_out, name="doctor", daemon=True).start()
        self._events.publish("doctor.progress")

    def _look_aside(self) -> None:
        try:
            self._examine(quick=True)
        except Exception:  # nobody waits for it
            logger.exception("The box could not be examined")
        finally:
            self._looking = False

    def _carry_out(self) -> None:
        try:
            self._whole = self._examine(quick=False)
        except Exception:
            logger.exception("The box could not be examined")
        finally:
            self._under_way = None
            self._events.publish("doctor.progress")

    def _examine(self, *, quick: bool) -> Report:
        def tell(title: str, fraction: float) -> None:
            under_way = self._under_way
            if quick or under_way is None:
                return
            self._under_way = replace(under_way, title=title, fraction=fraction)
            if time.monotonic() - self._told >= TELL_SECONDS:
                self._told = time.monotonic()
                self._events.publish("doctor.progress")

        began = time.monotonic()
        with looked_at(self._home, self._standing(), quick=quick) as box:
            report = examine(box, tell)
        with self._lock:
            if began < self._began:
                return report  # a quick look that began later has ended before, and knows better
            before, self._last, self._began = self._last, report, began
        errors = report.count("error")
        if errors != (before.count("error") if before else 0):
            logger.log(
                logging.WARNING if errors else logging.INFO,
                "Something is wrong with the box: %s",
                "; ".join(one.seen for one in report.findings if one.level == "error") or "not any more",
            )
            self._events.publish("doctor.found", errors=errors)
        return report


def inside(home: Home, config: Config, engine: Engine, learning: Learning) -> Standing | None:
    """What a daemon says of itself to itself."""
    written = written_down(home)
    if written is None or written.pid != os.getpid():
        return None  # it is about to start or to stop
    status = learning.status()
    return replace(
        written,
        healthy=engine.alive and engine.stats().stalled_seconds < config.server.stalled_seconds,
        ready=engine.alive,
        version=__version__,
        adapter=engine.adapter,
        learning={
            "run": None if status.run is None else {"id": status.run.id},
            "deferral": None if status.deferral is None else {"reason": status.deferral.reason},
        },
    )
