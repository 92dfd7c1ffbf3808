"""What the queue calls for, and how an unsuccessful batch is tried again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from appliance.home import Home
from appliance.learning.retry import (
    GENTLER,
    LEAST_TOKENS,
    MEMORY,
    Retry,
    adjusted,
    load_retry,
    pause_seconds,
    save_retry,
)
from appliance.learning.scheduler import find_due
from appliance.sections import LoraConfig, TrainConfig
from appliance.store import Store

LORA = LoraConfig(auto_train_threshold=100, batch_timeout_minutes=60)
TRAIN = TrainConfig()


@pytest.fixture
def store(home: Home) -> Iterator[Store]:
    opened = Store.open(home)
    yield opened
    opened.close()


@pytest.mark.parametrize(
    ("pending", "oldest", "trigger"),
    [
        (0, None, None),
        (99, 9_000.0, None),
        (100, 9_000.0, "threshold"),
        (1, 10_000.0 - 3_600, "timeout"),
        (1, 10_000.0 - 3_599, None),
        (500, 0.0, "threshold"),
    ],
)
def test_threshold_and_timeout(pending: int, oldest: float | None, trigger: str | None) -> None:
    due = find_due(LORA, pending=pending, oldest=oldest, retry=None, now=10_000.0)
    assert (due.trigger if due else None) == trigger


def test_a_pause_holds_back_and_a_batch_to_retry_goes_first() -> None:
    def due(retry: Retry) -> str | None:
        found = find_due(LORA, pending=500, oldest=0.0, retry=retry, now=1000.0)
        return found.trigger if found else None

    assert due(Retry(1001.0)) is None
    assert due(Retry(1001.0, ("a",), 2)) is None
    assert due(Retry(1000.0)) == "threshold"
    assert due(Retry(1000.0, ("a",), 2)) == "retry"


HOURS = 3600.0


def test_a_clock_that_is_set_back_stops_nothing() -> None:
    """Noted at noon, and it is nine in the morning again: due, as nobody knows how long it has waited."""
    noon, nine, later = 12 * HOURS, 9 * HOURS, 13 * HOURS

    def due(oldest: float | None, retry: Retry | None, now: float) -> str | None:
        found = find_due(LORA, pending=1, oldest=oldest, retry=retry, now=now)
        return found.trigger if found else None

    assert due(noon, None, noon) is None
    assert due(noon, None, nine) == "timeout"
    assert due(noon + 50, None, noon) is None  # adjusted a little, as clocks are all the time
    batch = Retry(noon + 600, ("a",), 2, saved=noon)
    assert due(None, batch, noon) is None
    assert due(None, batch, nine) == "retry"
    # A cancelled run's pause: over, but no reason for a run.
    assert due(nine, Retry(later, saved=noon), nine) is None


def test_a_clock_that_is_set_forward_makes_one_run_due_at_a_time() -> None:
    """The batch to try again goes first; what is due besides waits, and is one run however late it is."""
    now = 100 * HOURS
    retry = Retry(12 * HOURS, ("a",), 2, saved=11 * HOURS)
    found = find_due(LORA, pending=500, oldest=0.0, retry=retry, now=now)
    assert found is not None
    assert (found.trigger, found.count) == ("retry", 1)
    found = find_due(LORA, pending=7, oldest=0.0, retry=None, now=now)
    assert found is not None
    assert (found.trigger, found.count) == ("timeout", 7)


def test_it_is_kept_over_restarts(store: Store) -> None:
    assert load_retry(store.settings) is None
    retry = Retry(12.5, ("a", "b"), 2, ("probes",))
    save_retry(store.settings, retry)
    kept = load_retry(store.settings)
    assert kept is not None
    assert abs(kept.saved - time.time()) < 60
    assert replace(kept, saved=0.0) == retry
    save_retry(store.settings, None)
    assert load_retry(store.settings) is None


def test_pauses_double() -> None:
    assert [pause_seconds(attempt, 5) for attempt in (1, 2, 3)] == [300, 600, 1200]


def test_the_next_attempt_answers_to_what_failed() -> None:
    assert adjusted(TRAIN, 1, ()) is TRAIN
    assert adjusted(TRAIN, 2, ()) is TRAIN  # it died: nothing is wrong with the settings
    gentler = adjusted(TRAIN, 2, ("probes", "taught"))
    assert gentler.learning_rate == TRAIN.learning_rate / GENTLER
    assert gentler.epochs == TRAIN.epochs
    assert adjusted(TRAIN, 2, ("recall", "earlier")) == gentler
    longer = adjusted(TRAIN, 3, ("taught", "recall"))
    assert longer.learning_rate == TRAIN.learning_rate
    assert longer.epochs == round(TRAIN.epochs * 2.25)
    assert gentler.seed != TRAIN.seed


def test_what_had_too_little_memory_is_tried_with_less_of_long_conversations() -> None:
    smaller = adjusted(TRAIN, 2, (MEMORY,))
    assert smaller == TRAIN.model_copy(update={"max_tokens": TRAIN.max_tokens // 2})
    assert adjusted(TRAIN, 3, (MEMORY,)).max_tokens == TRAIN.max_tokens // 4
    assert adjusted(TRAIN, 20, (MEMORY,)).max_tokens == LEAST_TOKENS
