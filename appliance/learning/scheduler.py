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
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.background import BackgroundScheduler

from appliance.learning.retry import Retry, ahead
from appliance.sections import LoraConfig
from appliance.store import Store
from appliance.store.runs import Trigger

logger = logging.getLogger(__name__)

CHECK_SECONDS = 5
LOOK = "look"


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


class _Jobs(BackgroundScheduler):  # type: ignore[misc]  # it has no types
    """APScheduler, for a clock that may be set back: it would wait until the clock is where it was."""

    def _process_jobs(self) -> float:
        now = datetime.now(UTC)
        for job in self.get_jobs():
            if job.next_run_time is not None and job.next_run_time > now + timedelta(seconds=CHECK_SECONDS):
                job.modify(next_run_time=now)
        wait = super()._process_jobs()
        return CHECK_SECONDS if wait is None else min(wait, CHECK_SECONDS)


class Scheduler:
    """Calls `check` often enough, in a thread of its own, never twice at the same time."""

    def __init__(self, store: Store, check: Callable[[], None]) -> None:
        self._store = store
        self._check = check
        self._nudged = threading.Event()
        self._stopping = False
        self._checking = threading.Lock()
        self._jobs = _Jobs(timezone=UTC)
        # One job that recurs and is brought forward by a nudge, not a second one that fires once:
        # APScheduler 3.11 ends with an error when it is shut down while it takes a spent job out.
        # Two instances, so that a nudge during a check is kept until that check is over.
        self._jobs.add_job(
            self._run,
            "interval",
            seconds=CHECK_SECONDS,
            id=LOOK,
            coalesce=True,
            misfire_grace_time=None,
            max_instances=2,
            next_run_time=datetime.now(UTC),
        )
        self._remove: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Begin to look."""
        self._jobs.start()
        self._remove = self._store.on_change(self._changed)

    def stop(self) -> None:
        """Stop looking; waits for a check that is going on."""
        self._remove()
        self._stopping = True
        with self._checking:  # not in `shutdown`, which holds the lock that a check needs in order to nudge
            pass
        self._jobs.shutdown(wait=True)

    def nudge(self) -> None:
        """Look now, or again when the check going on has ended."""
        if not self._nudged.is_set():
            self._nudged.set()
            with suppress(JobLookupError):  # stopped
                self._jobs.modify_job(LOOK, next_run_time=datetime.now(UTC))

    def _changed(self, tables: frozenset[str]) -> None:
        if "examples" in tables:
            self.nudge()

    def _run(self) -> None:
        with self._checking:
            self._nudged.clear()
            if self._stopping:
                return
            try:
                self._check()
            except Exception:
                logger.exception("The queue could not be looked at; trying again")
