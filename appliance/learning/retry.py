"""What becomes of a batch whose run did not end with a promotion.

Nothing an owner taught is thrown away, and no batch may keep the box busy for ever:

* A run that *died* for good (see `resumption.py`) releases its examples; the same batch is tried
  again after a pause that doubles each time.
  One that went beyond its memory, or that the kernel killed for want of it, keeps fewer tokens of long
  conversations when it is tried again: those are what makes a step large.
* A run that the gate *rejected* is tried again likewise, but with other settings, since the same
  would give the same: a lower learning rate when it made the model forget, more passes when it did
  not learn enough, another seed in both cases.
* One that went beyond its *time* is made lighter (see `costly.py`), and what is left has its attempts.
* After `train.max_attempts` attempts the batch is *parked*: out of the queue, kept, shown.
* Newer examples wait for that outcome; they are not in the batch and are never parked with it.
* A person may have the examples of a run that did not succeed tried again, parked ones too, as far as
  they still wait. What failed is answered to likewise; when such an attempt is beyond `max_attempts`
  and does not succeed, they are parked again.
* A run that a person *cancelled* releases its examples; no run starts by itself for one batch
  timeout. One that the box's shutdown interrupted has not ended: the next start goes on with it.
* A run whose adapter was promoted and did not stand the *probation* is as good as rejected: what it
  learned is learned again, more gently, from the adapter before, and parked in the end. What people
  rejected meanwhile is not learned again; the ratings that brought the adapter down are examples of
  their own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

from appliance.config import Config
from appliance.errors import Conflict, InvalidRequest
from appliance.learning.costly import lighten
from appliance.sections import TrainConfig
from appliance.store import Store
from appliance.store.runs import Run
from appliance.store.settings import Settings

KEY = "learning.retry"
TOLERANCE = 60.0
"""Seconds that a stamp may lie ahead: clocks are adjusted a little all the time."""
GENTLER = 1.5
"""The learning rate of an attempt after one that forgot: at two thirds most is still learned."""

FORGETTING = frozenset(
    {"perplexity", "probes", "heldout", "earlier", "empty", "loops", "refusals", "sameness", "length"}
    | {"ratings", "engine"}
)
"""What fails in gate or probation when a model was changed too much; the rest, when it learned too little."""
MEMORY, TIME = "memory", "time"
"""What failed in an attempt that needed more of it than it may have."""
LEAST_TOKENS = 64
UNSUCCESSFUL = frozenset({"rejected", "failed", "cancelled", "parked"})
"""States of a run whose examples may be tried again."""


@dataclass(frozen=True)
class Retry:
    """When the next run may start by itself, and on what.

    Attributes:
        not_before: Unix time.
        ids: the batch to try again; empty when there is only a pause to keep.
        attempt: number of the coming attempt.
        failed: the gate's checks that failed in the last attempt, `MEMORY` or `TIME`; empty when it died
            otherwise.
        saved: Unix time at which it was kept.
        run: the run they were with before.
    """

    not_before: float
    ids: tuple[str, ...] = ()
    attempt: int = 1
    failed: tuple[str, ...] = ()
    saved: float = 0.0
    run: str | None = None

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
    return Retry(raw["not_before"], ids, raw["attempt"], failed, raw.get("saved", 0.0), raw.get("run"))


def save_retry(settings: Settings, retry: Retry | None) -> None:
    """Keep it over restarts, or forget it."""
    if retry is None:
        settings.delete(KEY)
    else:
        settings.set(KEY, json.dumps(asdict(retry) | {"saved": time.time()}))


def give_back(
    store: Store,
    config: Config,
    run: Run,
    state: Literal["failed", "rejected"],
    reason: str,
    failed: Sequence[str] = (),
    *,
    again: bool = False,
) -> Run:
    """End a run: release or park the examples it holds, and note when they are tried again.

    Another batch may wait to be tried again already: that of an adapter which was given up while this run
    went on from it. The two are then tried together.

    Args:
        store: where.
        config: how often, and the pause.
        run: the run.
        state: how it ended.
        reason: why, for a person.
        failed: the checks that failed.
        again: its attempt does not count.
    """
    attempt = run.attempt if again else run.attempt + 1
    with store.transaction():
        other = _other_waiting(store)
        examples = store.examples.held(run.id)
        held = tuple(example.id for example in examples)
        if TIME in failed and len(examples) > 1:
            heavy, lighter = lighten(examples)
            if heavy:
                store.examples.park_some(run.id, heavy, "It takes much longer to learn than the others.")
                reason = f"{reason} {len(heavy)} of its examples, which took much of that, were parked."
            if heavy or run.attempt > 1:  # the box may just have been busy, once
                held, attempt = lighter, run.attempt
        if failed:
            metrics = store.runs.get(run.id).metrics or {}
            store.runs.update(run.id, metrics={**metrics, "failed": [*failed]})
        if attempt > config.train.max_attempts:
            store.examples.park(run.id)
            save_retry(store.settings, other)
            reason = f"{reason} After {run.attempt} attempts its examples were parked."
            return end_run(store, run, "parked", reason)
        store.examples.release(run.id)
        pause = 0.0 if again else pause_seconds(run.attempt, config.resources.retry_minutes)
        retry = Retry(time.time() + pause, held, attempt, tuple(failed), run=run.id)
        save_retry(store.settings, retry if other is None else _together(retry, other))
        return end_run(store, run, state, reason)


def end_stopped(store: Store, config: Config, run: Run) -> Run:
    """End a run that a person stopped: its examples are pending again.

    Args:
        store: where.
        config: how long no run starts by itself after that.
        run: the run.
    """
    with store.transaction():
        store.examples.release(run.id)
        pause = config.lora.batch_timeout_minutes * 60
        save_retry(store.settings, Retry(time.time() + pause))
        return end_run(store, run, "cancelled", "A person stopped it. Its examples are in the queue again.")


def end_untrained(store: Store, run: Run, reason: str) -> Run:
    """End a run without a trainer. Its examples leave the queue: they would be no better next time."""
    with store.transaction():
        store.examples.mark_used(run.id)
        save_retry(store.settings, None)
        return end_run(store, run, "cancelled", reason)


def _other_waiting(store: Store) -> Retry | None:
    """The batch that waits to be tried again, as far as it is in the queue and no run has it."""
    retry = load_retry(store.settings)
    if retry is None:
        return None
    pending = {example.id for example in store.examples.pending()} if retry.ids else set()
    left = tuple(ident for ident in retry.ids if ident in pending)
    return replace(retry, ids=left) if left else None


def _together(one: Retry, other: Retry) -> Retry:
    return Retry(
        max(one.not_before, other.not_before),
        (*one.ids, *other.ids),
        max(one.attempt, other.attempt),
        tuple(dict.fromkeys((*one.failed, *other.failed))),
        run=one.run,
    )


def again(store: Store, run: Run, given: Iterable[str]) -> Retry:
    """What a run is tried again with because a person wants that.

    Args:
        store: where.
        run: the run.
        given: ids of the examples it was given; those it has parked are found without.

    Raises:
        Conflict: it has not ended, or did succeed.
        InvalidRequest: none of its examples waits any more.
    """
    if run.state not in UNSUCCESSFUL:
        problem = "has not ended" if run.ended is None else f"was {run.state}: there is nothing to try again"
        raise Conflict(f"{run.id} {problem}.")
    ids = store.examples.waiting(given, run.id)
    if not ids:
        raise InvalidRequest(
            f"None of the examples of {run.id} waits any more: they were learned in another run, replaced by "
            "newer feedback, or taken out."
        )
    failed = (run.metrics or {}).get("failed", [])
    attempt = run.attempt if run.state == "cancelled" else run.attempt + 1
    return Retry(time.time(), ids, attempt, tuple(failed), run=run.id)


def end_run(store: Store, run: Run, state: str, reason: str) -> Run:
    """Store how a run ended."""
    return store.runs.update(run.id, state=state, reason=reason, ended=time.time(), pid=None)


def pause_seconds(attempt: int, retry_minutes: float) -> float:
    """Pause after that attempt: it doubles."""
    return float(retry_minutes * 60 * 2 ** (attempt - 1))


def adjusted(train: TrainConfig, attempt: int, failed: Sequence[str]) -> TrainConfig:
    """Settings of an attempt, given what failed in the one before."""
    if attempt <= 1 or not failed or TIME in failed:
        return train
    if MEMORY in failed:
        fewer = max(LEAST_TOKENS, train.max_tokens // 2 ** (attempt - 1))
        return train.model_copy(update={"max_tokens": fewer})
    changes: dict[str, float] = {"seed": train.seed + attempt - 1}
    if FORGETTING & set(failed):
        changes["learning_rate"] = train.learning_rate / GENTLER ** (attempt - 1)
    else:
        changes["epochs"] = min(100, round(train.epochs * 1.5 ** (attempt - 1)))
    return train.model_copy(update=changes)
