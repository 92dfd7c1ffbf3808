"""When a run starts by itself: enough examples, or the oldest has waited long enough.

The queue is looked at whenever the store says that examples changed, and every few seconds, which
is what notices time passing: a timeout, the end of a pause, resources that have become free.

Clocks jump: a box without a battery for its clock wakes up in the past. What is stamped with a time
that is still to come is from before such a jump. How long it has waited cannot be known, so it is
due; what follows is stamped anew, so that this happens once.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from appliance.config import LoraConfig
from appliance.learning.retry import Retry, ahead
from appliance.store import Store
from appliance.store.runs import Trigger

logger = logging.getLogger(__name__)

CHECK_SECONDS = 5


@dataclass(frozen=True)
class Due:
    """A run that should start now.

    Attributes:
        retry: the batch to try again, for trigger "retry".
    """

    trigger: Trigger
    count: int
    retry: Retry | None = None


def find_due(
    config: LoraConfig, *, pending: int, oldest: float | None, retry: Retry | None, now: float
) -> Due | None:
    """What the queue calls for.

    Args:
        config: threshold and timeout.
        pending: examples in the queue.
        oldest: when the longest waiting one came.
        retry: a pause to keep, or a batch to try again first.
        now: Unix time.
    """
    if retry is not None:
        if retry.waits(now):
            return None
        if retry.ids:
            return Due("retry", len(retry.ids), retry)
    if pending >= config.auto_train_threshold:
        return Due("threshold", pending)
    if oldest is not None and (now >= oldest + config.batch_timeout_minutes * 60 or ahead(oldest, now)):
        return Due("timeout", pending)
    return None


class Scheduler:
    """Calls `check` often enough, in a thread of its own, so never twice at the same time.

    It waits by a clock that nobody sets.
    """

    def __init__(self, store: Store, check: Callable[[], None]) -> None:
        self._store = store
        self._check = check
        self._nudged = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._remove: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Begin to look."""
        self._remove = self._store.on_change(self._changed)
        self._thread.start()

    def stop(self) -> None:
        """Stop looking; waits for a check that is going on."""
        self._remove()
        self._stopping = True
        self._nudged.set()
        self._thread.join()

    def nudge(self) -> None:
        """Look now, or again when the check going on has ended."""
        self._nudged.set()

    def _changed(self, tables: frozenset[str]) -> None:
        if "examples" in tables:
            self.nudge()

    def _run(self) -> None:
        while True:
            self._nudged.clear()
            if self._stopping:
                return
            try:
                self._check()
            except Exception:
                logger.exception("The queue could not be looked at; trying again")
            self._nudged.wait(CHECK_SECONDS)
