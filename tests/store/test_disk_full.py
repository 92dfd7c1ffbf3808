from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from typing import Any

import pytest

from appliance.config import Config
from appliance.errors import StorageFull
from appliance.events import EventBus
from appliance.home import Home
from appliance.learning.collector import CollectedExchange, Collector
from appliance.learning.feedback import Feedback, give_feedback
from appliance.store import Store
from appliance.store.examples import NewExample
from appliance.store.mirror import QueueMirror

New = Callable[..., NewExample]


def fill_disk(store: Store, disk: Any) -> None:
    """Fill the disk, leaving some room inside the database's own files."""
    store.settings.set("ballast", "x" * 200_000)
    store.settings.delete("ballast")
    store.database.all("PRAGMA wal_checkpoint")
    disk.fill()


def fill_until_full(store: Store, new: New, disk: Any) -> list[str]:
    """Fill the disk and then the database's files; gives what was stored on the way."""
    fill_disk(store, disk)
    added: list[str] = []
    with pytest.raises(StorageFull):
        for number in range(10_000):
            added.append(store.examples.add(new(f"{number} " + "x" * 2000, "y" * 2000)).id)
    assert added
    return added


def test_nothing_is_half_done_and_nothing_is_lost(small_disk: Any, new: New) -> None:
    home = Home(small_disk.path / "home")
    store = Store.open(home)
    config = Config()
    first = store.examples.add(new("Q", "wrong"))
    added = fill_until_full(store, new, small_disk)
    before = store.examples.counts()

    big = Feedback(query="Q", response="wrong", correction="right " * 2000)
    for _ in range(3):
        with pytest.raises(StorageFull) as caught:
            give_feedback(store, config, big)
    assert caught.value.status == 507
    assert store.examples.counts() == before
    assert store.examples.get(first.id).state == "pending"
    assert store.examples.rejected_answers("Q") == set()

    small_disk.free()
    given = give_feedback(store, config, big)
    assert store.examples.get(first.id).state == "superseded"
    assert store.examples.rejected_answers("Q") == {"wrong"}
    store.close()

    store = Store.open(home)
    assert [store.examples.get(id).state for id in (*added, given.id)] == ["pending"] * (len(added) + 1)
    assert store.database.value("PRAGMA integrity_check") == "ok"
    store.close()


def test_opening_on_a_full_disk(small_disk: Any, new: New) -> None:
    home = Home(small_disk.path / "home").ensure()
    small_disk.fill()
    with pytest.raises(StorageFull):
        Store.open(home)
    small_disk.free()
    store = Store.open(home)
    example = store.examples.add(new())
    store.close()
    small_disk.fill()
    # Nothing to be read is lost; whether there is room for the log's index depends on the last byte.
    try:
        store = Store.open(home)
    except StorageFull:
        small_disk.free()
        store = Store.open(home)
    assert store.examples.get(example.id) == example
    store.close()


def test_collection_pauses_and_resumes(small_disk: Any, new: New, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="appliance.learning.collector")
    store = Store.open(Home(small_disk.path / "home"))
    events = EventBus()
    collector = Collector(store, Config(), events, retry=0.1)
    fill_until_full(store, new, small_disk)
    before = store.examples.count()

    def exchange(number: int) -> CollectedExchange:
        query = f"question {number} " + "x" * 3000
        messages = [{"role": "user", "content": query}]
        return CollectedExchange(f"c{number}", messages, query, "y" * 3000, "stop", None, "m", None, 1, 1)

    started = time.monotonic()
    for number in range(10):
        collector.collect(exchange(number))
    assert time.monotonic() - started < 0.05
    assert not collector.flush(timeout=0.5)
    assert collector.paused is not None
    collector.collect(exchange(10))
    time.sleep(0.3)
    assert [event.name for event in events.recent()] == ["collect.paused"]
    assert events.recent()[0].data["reason"] == "disk full"
    assert sum(record.levelno >= logging.WARNING for record in caplog.records) == 1
    assert store.examples.count() == before

    small_disk.free()
    assert collector.flush(timeout=5)
    assert collector.paused is None
    assert store.examples.count() == before + 11
    assert [event.name for event in events.recent()][:3] == [
        "collect.paused",
        "collect.resumed",
        "example.collected",
    ]
    collector.stop()
    store.close()


def test_the_mirror_outlives_a_full_disk(
    small_disk: Any, new: New, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.store.mirror.RETRY_SECONDS", 0.1)
    caplog.set_level(logging.INFO, logger="appliance.store.mirror")
    home = Home(small_disk.path / "home")
    store = Store.open(home)
    mirror = QueueMirror(store, home)
    mirror.start()
    store.examples.add(new("a"))
    mirror.flush()
    held = home.queue.read_bytes()

    added = len(fill_until_full(store, new, small_disk))
    with pytest.raises(StorageFull):
        mirror.flush()
    time.sleep(1.0)
    full = home.queue.read_bytes()
    assert full.startswith(held)
    assert full.endswith(b"\n")

    small_disk.free()
    deadline = time.monotonic() + 3
    while len(home.queue.read_text().splitlines()) < added + 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert json.loads(home.queue.read_text().splitlines()[0])["query"] == "a"
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.INFO]
    mirror.stop()
    store.close()


def test_the_mirror_starts_on_a_full_disk(
    small_disk: Any, new: New, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.store.mirror.RETRY_SECONDS", 0.1)
    home = Home(small_disk.path / "home")
    store = Store.open(home)
    store.examples.add(new("a" * 10_000))
    small_disk.fill()
    mirror = QueueMirror(store, home)
    mirror.start()
    time.sleep(0.5)
    assert not home.queue.exists()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    small_disk.free()
    deadline = time.monotonic() + 3
    while not home.queue.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    mirror.stop()
    assert len(home.queue.read_text().splitlines()) == 1
    store.close()
