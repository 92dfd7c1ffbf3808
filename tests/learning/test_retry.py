"""What the queue calls for, and how an unsuccessful batch is tried again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from appliance.config import LoraConfig, TrainConfig
from appliance.home import Home
from appliance.learning.retry import GENTLER, Retry, adjusted, load_retry, pause_seconds, save_retry
from appliance.learning.scheduler import find_due
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


def test_it_is_kept_over_restarts(store: Store) -> None:
    assert load_retry(store.settings) is None
    retry = Retry(12.5, ("a", "b"), 2, ("probes",))
    save_retry(store.settings, retry)
    assert load_retry(store.settings) == retry
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
