"""The box's care for its own data, in a thread of its own: backups, tidying, a daily look for damage.

It never holds up who asks: backups are made by a child that yields, the look for damage reads with a
connection of its own, and what is removed is nothing that serves.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from appliance.backup.automatic import AutomaticBackups
from appliance.backup.mend import suspect
from appliance.config import Config
from appliance.engine.engine import Engine
from appliance.errors import ShammahError
from appliance.events import EventBus
from appliance.home import Home
from appliance.learning.service import Learning
from appliance.learning.switch import APPLIANCE
from appliance.model.bundle import Manifest
from appliance.storage.reserve import put_by
from appliance.storage.tidy import MB, Tidied, plan, summary, tidy
from appliance.store import Store

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
FIRST_SECONDS = 900.0
"""After a start, until the first tidying and the first look for damage."""
DAILY_SECONDS = 86_400.0
STOP_SECONDS = 5.0
"""What is read through just now does not keep the box from stopping."""
DISK_SECONDS = 30.0
LOW_SECONDS = 600.0
"""From one tidying for want of room to the next: what could go has gone."""


@dataclass(frozen=True)
class UpkeepState:
    """What the owner may have to know.

    Attributes:
        damaged: what is wrong with the database; None when nothing is known.
        short: bytes that are missing for budget and free disk though all that may go has gone.
        low: the disk has less room than `[storage] min_free_mb` wants.
    """

    damaged: str | None = None
    short: int = 0
    low: bool = False


class Upkeep:
    """Does what is due, one thing after the other."""

    def __init__(
        self,
        home: Home,
        config: Config,
        store: Store,
        engine: Engine,
        learning: Learning,
        manifest: Manifest,
        events: EventBus,
    ) -> None:
        self._home = home
        self._config = config
        self._store = store
        self._engine = engine
        self._learning = learning
        self._events = events
        self.backups = AutomaticBackups(home, config, manifest, events, lambda: engine.busy)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = threading.Event()
        self._tidying = threading.Lock()
        self._thread: threading.Thread | None = None
        now = time.monotonic()
        self._tidy_at = self._check_at = now + FIRST_SECONDS
        self._disk_at = now
        self._state = UpkeepState()
        self._told: str | None = None

    @property
    def state(self) -> UpkeepState:
        """What the owner may have to know, as of the last look."""
        return UpkeepState(self._store.database.damaged, self._state.short, self._state.low)

    def start(self) -> None:
        """Begin. In the event loop's thread."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name="upkeep", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End what is going on. Not in the event loop's thread, which has to go on meanwhile."""
        self._stopping.set()
        self.backups.stop()
        if self._thread is not None:
            self._thread.join(STOP_SECONDS)

    def plan(self) -> Tidied:
        """What a tidying would remove now. Blocking."""
        return plan(self._home, self._store, self._config, self._engine.adapter)

    def tidy(self, actor: str = APPLIANCE) -> Tidied:
        """Remove what may go. Blocking; not in the event loop's thread.

        Raises:
            Conflict: something is being forgotten.
        """
        with self._tidying:
            done = tidy(
                self._home, self._store, self._config, self._engine.adapter, self._remover(actor), actor
            )
        self._state = UpkeepState(short=done.short, low=self._state.low and done.short > 0)
        if done.removed or done.answers or done.audit:
            self._events.publish("storage.tidied", actor=actor, **summary(done))
        return done

    def _remover(self, actor: str) -> Callable[[str], None]:
        def remove(name: str) -> None:
            assert self._loop is not None
            asyncio.run_coroutine_threadsafe(self._learning.remove(name, actor), self._loop).result()

        return remove

    def _work(self) -> None:
        try:
            self.backups.start()
        except Exception:
            logger.exception("What an earlier daemon left of a backup could not be looked at")
        while not self._stopping.wait(LOOK_SECONDS):
            for act in (
                self._watch_damage,
                self._watch_disk,
                self._back_up,
                self._tidy_daily,
                self._check_daily,
            ):
                if self._stopping.is_set():
                    return
                try:
                    act()
                except Exception:
                    logger.exception("Upkeep met an error")

    def _watch_damage(self) -> None:
        """Say it once, and see to it that the next start looks."""
        damaged = self._store.database.damaged
        if damaged is not None and damaged != self._told:
            self._told = damaged
            suspect(self._home)
            logger.error(
                "The store is damaged (%s). Serving goes on; a restart puts the last good state in place.",
                damaged,
            )
            self._events.publish("store.damaged", problem=damaged)

    def _watch_disk(self) -> None:
        now = time.monotonic()
        if now < self._disk_at:
            return
        self._disk_at = now + DISK_SECONDS
        low = shutil.disk_usage(self._home.root).free < self._config.storage.min_free_mb * MB
        if not low:
            self._state = UpkeepState(short=self._state.short)
            return
        if not self._state.low:
            logger.warning("The disk has less than %d MB left.", self._config.storage.min_free_mb)
            self._events.publish("storage.low", min_free_mb=self._config.storage.min_free_mb)
        self._state = UpkeepState(short=self._state.short, low=True)
        self._disk_at = now + LOW_SECONDS
        self.tidy()

    def _back_up(self) -> None:
        if self.backups.due(time.time()):
            self.backups.make()

    def _tidy_daily(self) -> None:
        if time.monotonic() >= self._tidy_at:
            self._tidy_at = time.monotonic() + DAILY_SECONDS
            self.tidy()
            put_by(self._home)

    def _check_daily(self) -> None:
        if time.monotonic() >= self._check_at:
            self._check_at = time.monotonic() + DAILY_SECONDS
            try:
                self._store.database.check()
            except ShammahError as error:
                logger.error("%s", error)
