from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.config import Config
from appliance.events import EventBus
from appliance.home import Home
from appliance.learning.collector import BACKLOG, CollectedExchange, Collector
from appliance.learning.feedback import Feedback, give_feedback
from appliance.sections import CollectConfig
from appliance.store import Store

CONFIG = Config(collect=CollectConfig(max_chars=1000))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(Home(tmp_path / "home"))
    yield opened
    opened.close()


@pytest.fixture
def events() -> EventBus:
    return EventBus()


@pytest.fixture
def collector(store: Store, events: EventBus) -> Iterator[Collector]:
    running = Collector(store, CONFIG, events)
    yield running
    running.stop()


def exchange(
    id: str = "c1", query: str = "What is 2+2?", response: str = "5", **more: object
) -> CollectedExchange:
    made = CollectedExchange(
        completion_id=id,
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": query}],
        query=query,
        response=response,
        finish_reason="stop",
        device="dev_1",
        model="m",
        adapter="adapter_a",
        prompt_tokens=9,
        completion_tokens=1,
    )
    return replace(made, **more)


def test_collects(
    store: Store, collector: Collector, events: EventBus, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="appliance.learning.collector")
    collector.collect(exchange())
    assert collector.flush()
    (example,) = store.examples.pending()
    assert (example.kind, example.query, example.response, example.target) == (
        "automatic", "What is 2+2?", "5", "5",
    )  # fmt: skip
    assert example.weight == CONFIG.lora.normal_weight
    assert example.feedback is None
    assert example.messages == exchange().messages
    assert (example.device, example.completion_id) == ("dev_1", "c1")
    found = store.completions.get("c1")
    assert found is not None
    assert (found.response, found.adapter, found.prompt_tokens) == ("5", "adapter_a", 9)
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("DEBUG", "Auto-collected query/response for training")
    ]
    assert [(event.name, event.data) for event in events.recent()] == [("example.collected", {"pending": 1})]


def test_a_hundred_equal_ones_are_a_hundred(store: Store, collector: Collector) -> None:
    for number in range(100):
        collector.collect(exchange(f"c{number}"))
    assert collector.flush()
    assert store.examples.count("pending") == 100


def test_a_cut_off_answer_is_marked(store: Store, collector: Collector) -> None:
    collector.collect(exchange(finish_reason="length"))
    collector.flush()
    assert store.examples.pending()[0].finish_reason == "length"


@pytest.mark.parametrize(
    "fields, texts_kept",
    [
        ({"finish_reason": "tool_calls"}, True),
        ({"with_tools": True}, True),
        ({"finish_reason": "cancelled"}, True),
        ({"response": "  "}, True),
        ({"query": " "}, True),
        ({"store": False}, False),
        ({"response": "x" * 1001}, False),
        ({"messages": [{"role": "user", "content": "x" * 1001}]}, False),
    ],
)
def test_recorded_but_not_learned(store: Store, collector: Collector, fields: dict, texts_kept: bool) -> None:
    collector.collect(exchange(**fields))
    assert collector.flush()
    assert store.examples.count() == 0
    found = store.completions.get("c1")
    assert found is not None
    assert bool(found.messages) == texts_kept
    if not texts_kept:
        assert found.query == found.response == ""


def test_internal_traffic_leaves_no_trace(store: Store, collector: Collector) -> None:
    collector.collect(exchange(internal=True))
    assert collector.flush()
    assert store.completions.recent() == []


def test_switched_off(store: Store, events: EventBus) -> None:
    collector = Collector(store, Config(collect=CollectConfig(enabled=False)), events)
    collector.collect(exchange())
    collector.stop()
    assert store.examples.count() == 0
    assert store.completions.get("c1") is not None


def test_a_rejected_answer_never_comes_back(store: Store, collector: Collector) -> None:
    collector.collect(exchange("c1"))
    collector.flush()
    give_feedback(store, CONFIG, Feedback(completion_id="c1", correction="4"))
    collector.collect(exchange("c2", query="what is 2+2", response="**5.**"))
    collector.collect(exchange("c3", query="What is 2+3?"))
    collector.flush()
    assert [(e.query, e.target) for e in store.examples.pending()] == [
        ("What is 2+2?", "4"),
        ("What is 2+3?", "5"),
    ]
    assert store.completions.get("c2") is not None


def test_a_new_wrong_answer_does_not_dilute_a_waiting_correction(store: Store, collector: Collector) -> None:
    give_feedback(store, CONFIG, Feedback(query="What is 2+2?", response="5", correction="4"))
    collector.collect(exchange("c1", response="6"))
    collector.collect(exchange("c2", response="4."))
    collector.flush()
    assert [example.target for example in store.examples.pending()] == ["4", "4."]


@pytest.mark.parametrize("named", [True, False])
def test_feedback_that_is_faster_than_collection(store: Store, collector: Collector, named: bool) -> None:
    id = "c1" if named else None
    give_feedback(store, CONFIG, Feedback(query="What is 2+2?", response="5", rating="up", completion_id=id))
    collector.collect(exchange("c1"))
    collector.flush()
    (example,) = store.examples.pending()
    assert (example.kind, example.completion_id) == ("praise", "c1")
    collector.collect(exchange("c2"))
    collector.flush()
    assert store.examples.count("pending") == 2


def test_feedback_waits_for_what_was_just_answered(store: Store, collector: Collector) -> None:
    with store.transaction():
        collector.collect(exchange("c1"))
        time.sleep(0.05)
        assert store.completions.get("c1") is None
    example = give_feedback(store, CONFIG, Feedback(completion_id="c1", rating="up"), collector=collector)
    assert example.query == "What is 2+2?"
    assert store.examples.count("pending") == 1


def test_never_blocks(store: Store, collector: Collector) -> None:
    with store.transaction():
        started = time.monotonic()
        for number in range(BACKLOG + 100):
            collector.collect(exchange(f"c{number}"))
        assert time.monotonic() - started < 0.5
        assert not collector.flush(timeout=0.05)
    assert collector.flush()
    assert store.completions.get(f"c{BACKLOG + 99}") is not None
    assert store.examples.count() >= BACKLOG


def test_one_that_cannot_be_stored_harms_no_other(
    store: Store, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    with store.transaction():
        for id, text in (("c1", "fine"), ("c2", "\ud800"), ("c3", "fine too")):
            collector.collect(exchange(id, response=text))
    assert collector.flush()
    assert [example.target for example in store.examples.pending()] == ["fine", "fine too"]
    assert ["c2" in record.getMessage() for record in caplog.records] == [True]


def test_stop_drains(store: Store, events: EventBus) -> None:
    collector = Collector(store, CONFIG, events)
    for number in range(200):
        collector.collect(exchange(f"c{number}"))
    collector.stop()
    assert store.examples.count("pending") == 200
    collector.collect(exchange("late"))
    assert store.completions.get("late") is None


def test_many_threads(store: Store, collector: Collector) -> None:
    def work(name: int) -> Callable[[], None]:
        return lambda: [collector.collect(exchange(f"c{name}.{n}")) for n in range(50)] and None

    threads = [threading.Thread(target=work(name)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert collector.flush()
    assert store.examples.count("pending") == 200
