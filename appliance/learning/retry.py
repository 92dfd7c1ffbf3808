"""What becomes of a batch whose run did not end with a promotion.

Nothing an owner taught is thrown away, and no batch may keep the box busy for ever:

* A run that *died* for good (see `resumption.py`) releases its examples; the same batch is tried
  again after a pause that doubles each time.
* A run that the gate *rejected* is tried again likewise, but with other settings, since the same
  would give the same: a lower learning rate when it made the model forget, more passes when it did
  not learn enough, another seed in both cases.
* After `train.max_attempts` attempts the batch is *parked*: out of the queue, kept, shown.
* Newer examples wait for that outcome; they are not in the batch and are never parked with it.
* A run that a person *cancelled* releases its examples; no run starts by itself for one batch
  timeout. One that the box's shutdown interrupted does not count as an attempt.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from appliance.config import TrainConfig
from appliance.store.settings import Settings

KEY = "learning.retry"
TOLERANCE = 60.0
"""Seconds that a stamp may lie ahead: clocks are adjusted a little all the time."""
GENTLER = 1.5
"""The learning rate of an attempt after one that forgot: at two thirds most is still learned."""

FORGETTING = frozenset(
    {"perplexity", "probes", "heldout", "earlier", "empty", "loops", "refusals", "sameness", "length"}
)
"""Checks of the gate that fail when a model was changed too much; the others, when it learned too little."""


@dataclass(frozen=True)
class Retry:
    """When the next run may start by itself, and on what.

    Attributes:
        not_before: Unix time.
        ids: the batch to try again; empty when there is only a pause to keep.
        attempt: number of the coming attempt.
        failed: the gate's checks that failed in the last attempt; empty when it died.
        saved: Unix time at which it was kept.
    """

    not_before: float
    ids: tuple[str, ...] = ()
    attempt: int = 1
    failed: tuple[str, ...] = ()
    saved: float = 0.0

    def waits(self, now: float) -> bool:
        """Whether its time has not come. A pause that began in the future is over."""
        return now < self.not_before and not ahead(self.saved, now)


def ahead(stamp: float, now: float) -> bool:
    """Whether a time is so far to come that the clock was set back since it was noted."""
    return stamp > now + TOLERANCE


def load_retry(settings: Settings) -> Retry | None:
    """What was kept, if anything."""
    text = settings.get(KEY)
    if text is None:
        return None
    raw = json.loads(text)
    ids, failed = tuple(raw["ids"]), tuple(raw["failed"])
    return Retry(raw["not_before"], ids, raw["attempt"], failed, raw.get("saved", 0.0))


def save_retry(settings: Settings, retry: Retry | None) -> None:
    """Keep it over restarts, or forget it."""
    if retry is None:
        settings.delete(KEY)
    else:
        settings.set(KEY, json.dumps(asdict(retry) | {"saved": time.time()}))


def pause_seconds(attempt: int, retry_minutes: float) -> float:
    """Pause after that attempt: it doubles."""
    return float(retry_minutes * 60 * 2 ** (attempt - 1))


def adjusted(train: TrainConfig, attempt: int, failed: Sequence[str]) -> TrainConfig:
    """Settings of an attempt, given what failed in the one before."""
    if attempt <= 1 or not failed:
        return train
    changes: dict[str, float] = {"seed": train.seed + attempt - 1}
    if FORGETTING & set(failed):
        changes["learning_rate"] = train.learning_rate / GENTLER ** (attempt - 1)
    else:
        changes["epochs"] = min(100, round(train.epochs * 1.5 ** (attempt - 1)))
    return train.model_copy(update=changes)
