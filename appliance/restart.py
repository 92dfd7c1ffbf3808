"""Starting the box anew from within: it stops as on SIGTERM, and the process becomes a fresh daemon.

The process stays the same (`exec`), so that it works the same under systemd, as the first process of
a container, and at a terminal. Lock, socket and database are closed by the kernel on the way: Python
opens all of them so that they do not outlive an `exec`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from appliance.errors import ConfigError, Unavailable
from appliance.home import Home
from appliance.settings.check import problems
from appliance.settings.editor import SettingsEditor
from appliance.settings.form import Key
from appliance.stopping import STOPS
from appliance.store import Store

logger = logging.getLogger(__name__)


class Restart:
    """Whether the daemon starts anew when it has stopped.

    Attributes:
        wanted: it does.
    """

    def __init__(self, home: Home, store: Store, settings: SettingsEditor) -> None:
        self._home = home
        self._store = store
        self._settings = settings
        self._stop: Callable[[], None] | None = None
        self.wanted = False

    def stops_by(self, stop: Callable[[], None]) -> None:
        """Say how the daemon is told to stop."""
        self._stop = stop

    def waiting(self) -> tuple[Key, ...]:
        """The settings that a restart would change. Blocking."""
        return self._settings.page().restart

    def check(self) -> None:
        """Whether the box would come up again. Blocking.

        Raises:
            ConfigError: it would not; the message says what to correct.
            Unavailable: this program was not started as a daemon.
        """
        if self._stop is None:
            raise Unavailable("This program cannot restart itself: stop it, and start it again.")
        page = self._settings.page()
        config = page.file.config
        if config is None:
            raise _refused(page.file.problems)
        changed = {"model.name", *(key.name for key in page.restart)}
        if wrong := problems(config, changed, self._home, self._store):
            raise _refused([f"{key}: {problem}" for key, problem in wrong.items()])

    def begin(self, after: float = 0.0) -> None:
        """Stop so many seconds from now, and start anew. In the event loop's thread."""
        self.wanted = True
        asyncio.get_running_loop().call_later(after, self._now)

    def _now(self) -> None:
        if self.wanted and self._stop is not None:
            logger.info("Restarting. Requests that are being answered are finished first.")
            self._stop()

    def forget(self) -> None:
        """Stop for good: somebody outside says so."""
        self.wanted = False


def _refused(problems: Sequence[str]) -> ConfigError:
    return ConfigError(
        f"The box would not come up again, so it goes on as it is. Correct this first: {'; '.join(problems)}"
    )


def start_again() -> NoReturn:
    """Become a fresh daemon with the same command line. What is open has been closed before."""
    for number in STOPS:
        signal.signal(number, signal.SIG_DFL)  # one that is ignored would stay so
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
