from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import pytest

from appliance.home import Home
from appliance.store import Store
from appliance.store.examples import NewExample
from appliance.store.mirror import QueueMirror

New = Callable[..., NewExample]


@pytest.fixture
def mirror(store: Store, home: Home) -> Iterator[QueueMirror]:
    running = QueueMirror(store, home)
    running.start()
    yield running
    running.stop()


def lines(home: Home) -> list[dict]:
    text = home.queue.read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def queued(store: Store) -> list[str]:
    found = store.examples.list("pending", 1000) + store.examples.list("training", 1000)
    return sorted(example.id for example in found)


def soon(home: Home, store: Store) -> None:
    """The file must be right within a second of the change."""
    deadline = time.monotonic() + 1.0
    while sorted(line["id"] for line in lines(home)) != queued(store):
        assert time.monotonic() < deadline, "the mirror is more than a second behind"
        time.sleep(0.02)


def test_a_line_has_the_given_keys_in_order(store: Store, home: Home, mirror: QueueMirror, new: New) -> None:
    assert lines(home) == []
    store.examples.add(
        new("Wie hei\u00dft du?\nSag!", "x", kind="correction", target="Anna", correction="Anna")
    )
    mirror.flush()
    (line,) = lines(home)
    assert list(line) == [
        "query", "response", "weight", "feedback", "messages", "correction", "rating", "id", "created",
        "device", "source",
    ]  # fmt: skip
    assert line["query"] == "Wie hei\u00dft du?\nSag!"
    assert "hei\u00dft" in home.queue.read_text()


def test_follows_within_a_second(store: Store, home: Home, mirror: QueueMirror, new: New) -> None:
    added = [store.examples.add(new(f"Q{number}")) for number in range(5)]
    soon(home, store)
    run = store.runs.create("person", 3)
    store.examples.hold(run.id, [example.id for example in added[:3]])
    store.examples.add(new("later"))
    soon(home, store)
    assert len(lines(home)) == 6
    store.examples.mark_used(run.id)
    soon(home, store)
    assert len(lines(home)) == 3
    store.examples.update(added[4].id, weight=10.0)
    mirror.flush()
    assert [line["weight"] for line in lines(home)] == [1.0, 10.0, 1.0]


def test_additions_are_appended(store: Store, home: Home, mirror: QueueMirror, new: New) -> None:
    store.examples.add(new())
    mirror.flush()
    inode = home.queue.stat().st_ino
    for number in range(3):
        store.examples.add(new(f"Q{number}"))
        mirror.flush()
    assert home.queue.stat().st_ino == inode
    assert len(lines(home)) == 4


def test_another_process_writes(store: Store, home: Home, mirror: QueueMirror, new: New) -> None:
    other = Store.open(home)
    other.examples.add(new())
    other.close()
    soon(home, store)


def test_someone_touches_the_file(store: Store, home: Home, mirror: QueueMirror, new: New) -> None:
    store.examples.add(new("a"))
    mirror.flush()
    home.queue.unlink()
    store.examples.add(new("b"))
    mirror.flush()
    assert [line["query"] for line in lines(home)] == ["a", "b"]
    with home.queue.open("a") as file:
        file.write("scribble")
    store.examples.add(new("c"))
    mirror.flush()
    assert [line["query"] for line in lines(home)] == ["a", "b", "c"]


def test_rebuilt_at_start(store: Store, home: Home, new: New) -> None:
    store.examples.add(new("a"))
    home.queue.write_text('{"query": "stale"}\n{"query": "to')
    mirror = QueueMirror(store, home)
    mirror.start()
    assert [line["query"] for line in lines(home)] == ["a"]
    store.examples.add(new("b"))
    mirror.stop()
    assert [line["query"] for line in lines(home)] == ["a", "b"]


def test_a_returning_example_keeps_its_place(store: Store, home: Home, mirror: QueueMirror, new: New) -> None:
    first = store.examples.add(new("a", kind="critique", target=None, state="review"))
    store.examples.add(new("b"))
    mirror.flush()
    store.examples.update(first.id, target="4", state="pending")
    mirror.flush()
    assert [line["query"] for line in lines(home)] == ["a", "b"]
