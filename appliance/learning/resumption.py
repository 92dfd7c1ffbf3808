"""Whether a run that was cut off (kill, power, crash) goes on from its checkpoint, or is over."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from appliance.adapters.registry import Registry
from appliance.config import Config
from appliance.events import EventBus
from appliance.home import Home
from appliance.learning.batch import read_frozen
from appliance.learning.guard import check_resources
from appliance.learning.train import checkpoint
from appliance.learning.trainer import CANDIDATE, EXAMPLES, SETTINGS, discard, load_settings
from appliance.store import Store
from appliance.store.runs import Run

logger = logging.getLogger(__name__)

SAME_STEP = 2
"""So often a run goes on from the same step: what kills it there would kill it again."""
JUDGED_AGAIN = 3
"""So often the gate of a run is begun again when it was killed."""


class Resumption:
    """Decides it; how often a run went on, and from where, is kept with the run."""

    def __init__(
        self, home: Home, config: Config, store: Store, registry: Registry, events: EventBus
    ) -> None:
        self._home = home
        self._config = config
        self._store = store
        self._registry = registry
        self._events = events

    def obstacle(self, run: Run) -> str | None:
        """Why a run that was cut off before its verdict cannot go on; None when it is about to."""
        directory = self._home.runs / run.id
        needed = [EXAMPLES, SETTINGS, *([CANDIDATE] if run.state == "gating" else [])]
        if run.state == "queued" or not all((directory / name).is_file() for name in needed):
            return ""
        if not self._config.lora.enabled and run.trigger != "person":
            return ", and learning is off now"
        if run.parent != self._registry.current():
            return f", and {self._registry.current() or 'base'} is in service now"
        trained = [item.id for item in read_frozen(directory / EXAMPLES) if item.split != "replay"]
        if self._store.examples.any_in_review(
            trained
        ):  # an earlier release froze drafts that nobody had seen
            return ", and what it trains on waits for you to look at it"
        # Load and quiet hours do not stop a run that is under way, nor do they now.
        if deferral := check_resources(self._config.resources, self._home.root, person=True):
            return f", and the box has nothing to spare: {deferral.reason.rstrip('.')}"
        if not self.take_up(run, checkpoint.steps_done(directory / checkpoint.NAME)):
            return " too often"
        return None

    def take_up(self, run: Run, step: int) -> bool:
        """Whether a run that was cut off goes on from there; counted before it does."""
        metrics = self._store.runs.get(run.id).metrics or {}
        if metrics.pop("paused", False):
            # It did nothing wrong, so it goes on however often: a box may be stopped every night.
            self._store.runs.update(run.id, metrics={**metrics, "parts": metrics.get("parts", 1) + 1})
            self._tell(run, step, "was stopped with the box")
            return True
        earlier = metrics.get("resumed", [])
        limit = load_settings(self._home.runs / run.id).max_resumes
        if not may_go_on(earlier, step, limit):
            return False
        self._store.runs.update(run.id, metrics={**metrics, "resumed": [*earlier, step]}, pid=None)
        self._tell(run, step, "was cut off")
        return True

    def pause(self, run: Run) -> Run:
        """The box is being stopped: the next start takes the run up, and that does not count."""
        metrics = self._store.runs.get(run.id).metrics or {}
        logger.info("%s is stopped with the box; the next start goes on with it", run.id)
        return self._store.runs.update(run.id, metrics={**metrics, "paused": True}, pid=None)

    def _tell(self, run: Run, step: int, why: str) -> None:
        logger.warning("%s %s; it goes on from step %d", run.id, why, step)
        self._events.publish("run.resumed", run=run.id, step=step)

    def judge_again(self, run: Run) -> bool:
        """Whether a gate that was killed begins again; counted before it does."""
        metrics = self._store.runs.get(run.id).metrics or {}
        before = metrics.get("judged_again", 0)
        if before >= JUDGED_AGAIN:
            return False
        self._store.runs.update(run.id, metrics={**metrics, "judged_again": before + 1}, pid=None)
        logger.warning("The gate of %s was killed; it begins again", run.id)
        return True

    def sweep(self) -> None:
        """Remove what the runs that have ended left when a crash cut their end off."""
        unfinished = {run.id for run in self._store.runs.unfinished()}
        for file in self._home.runs.glob(f"*/*{checkpoint.NAME}"):
            if file.parent.name not in unfinished:
                discard(file.parent)


def was_paused(run: Run) -> bool:
    """Whether the box was stopped in an orderly way under it, and it waits for the next start."""
    return bool((run.metrics or {}).get("paused"))


def may_go_on(earlier: Sequence[int], step: int, limit: int) -> bool:
    """Whether a run that was cut off after `step` steps is taken up again.

    Args:
        earlier: the steps at which it was taken up before.
        step: where it would go on.
        limit: how often at most.
    """
    return len(earlier) < limit and list(earlier).count(step) < SAME_STEP
