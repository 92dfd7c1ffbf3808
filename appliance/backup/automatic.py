"""Automatic backups: when one is due, and having a child program make it.

The child yields to requests and can be stopped at any time. A failure is said, and tried again sooner than
the next one would be due.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from appliance.backup import archive
from appliance.backup.restore import restored_at
from appliance.config import Config
from appliance.errors import ShammahError
from appliance.events import EventBus
from appliance.home import Home
from appliance.learning.child import Child, ChildFailed, ChildStopped, Limits, kill_orphans
from appliance.learning.yielding import Yielding
from appliance.model.bundle import Manifest

logger = logging.getLogger(__name__)

SETTLE_SECONDS = 600.0
"""After a start the box has other things to do: a backup waits so long, or a tenth of the interval."""
RETRY_SECONDS = 3600.0
NICE = 19
MEMORY_MB = 1024
TIME_LIMIT_SECONDS = 6 * 3600.0


@dataclass(frozen=True)
class BackupState:
    """Where automatic backups stand.

    Attributes:
        last: when the newest automatic one was made, in Unix time; None when there is none.
        running: one is being made.
        failed: why the last try failed; None when it did not.
        failed_at: when, in Unix time.
        checked: when it was last seen that all is backed up, in Unix time.
    """

    last: float | None = None
    running: bool = False
    failed: str | None = None
    failed_at: float | None = None
    checked: float | None = None


class AutomaticBackups:
    """Owns the schedule; its calls come from one thread, `stop` from any."""

    def __init__(
        self, home: Home, config: Config, manifest: Manifest, events: EventBus, busy: Callable[[], bool]
    ) -> None:
        """Make it; `busy` says whether requests are active."""
        self._home = home
        self._config = config
        self._manifest = manifest
        self._events = events
        self._child = Child(Yielding(busy, config.resources.busy_share))
        self._began = time.monotonic()
        self._tried: float | None = None
        self._state = BackupState()

    @property
    def state(self) -> BackupState:
        """Where they stand."""
        return self._state

    def start(self) -> None:
        """Deal with what a daemon that was killed left, and look what there is."""
        kill_orphans(self._home.backups)
        self._state = replace(self._state, last=self._newest())

    def stop(self) -> None:
        """Stop the one being made; nothing of it is left."""
        self._child.stop()

    def due(self, now: float) -> bool:
        """Whether to make one at that Unix time."""
        every = self._config.backup.every_hours * 3600
        if not every or self._child.stopped:
            return False
        # By a clock that is not set: a wall clock that jumps must not have the box do nothing else, or never.
        pause = every if self._state.failed is None else min(every, RETRY_SECONDS)
        if self._tried is not None:
            return time.monotonic() - self._tried >= pause
        if time.monotonic() - self._began < min(SETTLE_SECONDS, every / 10):
            return False
        last = self._state.last
        return last is None or not 0 <= now - last < every or last < restored_at(self._home)

    def make(self) -> None:
        """Make one, if anything has changed since the last. Blocks, and never raises."""
        said: dict[str, Any] = {}
        self._tried = time.monotonic()
        self._state = replace(self._state, running=True)
        try:
            self._home.backups.mkdir(exist_ok=True, mode=0o700)
            log = self._home.logs / "backup.log"
            log.unlink(missing_ok=True)
            limits = Limits(NICE, MEMORY_MB, TIME_LIMIT_SECONDS)
            self._child.run(self._command(), log=log, limits=limits, on_event=said.update)
        except ChildStopped:
            self._state = replace(self._state, running=False)
        except (ChildFailed, OSError, ShammahError) as error:
            self._fail(str(error))
        else:
            now, name = time.time(), said.get("name")
            self._state = BackupState(last=self._newest(), checked=now)
            if name is not None:
                logger.info("Backed up: %s", name)
                self._events.publish("backup.made", backup=name)
        finally:
            self._tried = time.monotonic()

    def _fail(self, reason: str) -> None:
        self._state = replace(
            self._state, last=self._newest(), running=False, failed=reason, failed_at=time.time()
        )
        logger.error("The automatic backup failed: %s", reason)
        self._events.publish("backup.failed", reason=reason)

    def _command(self) -> list[str]:
        wanted = self._config.backup
        command = [sys.executable, "-m", "appliance.backup.program", "--home", os.fspath(self._home.root)]
        command += ["--out", os.fspath(self._home.backups / "automatic")]
        command += ["--model", self._manifest.name, "--base-hash", self._manifest.base_hash]
        command += ["--keep", str(wanted.keep), "--keep-weeks", str(wanted.keep_weeks)]
        return [*command, "--copy-to", wanted.copy_to] if wanted.copy_to else command

    def _newest(self) -> float | None:
        names = [path.name for path in self._home.backups.glob(f"{archive.BOX}_*.tar.gz")]
        return max((archive.made_at(name) for name in names if archive.stamp(name)), default=None)
