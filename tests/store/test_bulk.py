from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from appliance.errors import InvalidRequest
from appliance.home import Home
from appliance.store import Store
from appliance.store.browse import Filter
from appliance.store.bulk import LEFT, REPLACED, WAITING, Changed
from appliance.store.example import MAX_WEIGHT, STATES, Example
from appliance.store.examples import NewExample
from appliance.store.mirror import QueueMirror

New = Callable[..., NewExample]


def one_of_each(store: Store, new: New) -> dict[str, Example]:
    added = {
        state: store.examples.add(new(f"Question {state}?", kind="critique", state=state, note="before"))
        for state in STATES
        if state not in ("training", "parked")
    }
    for state in ("training", "parked"):
        run = store.runs.create("person", 1)
        added[state] = store.examples.add(new(f"Question {state}?", kind="critique", note="before"))
        store.examples.hold(run.id, [added[state].id])
        if state == "parked":
            store.examples.park(run.id)
    return {state: store.examples.get(example.id) for state, example in added.items()}


def test_every_state_is_waiting_or_has_a_reason() -> None:
    assert {*WAITING, *LEFT} == {*STATES}


@pytest.mark.parametrize("by", ["ids", "filter"])
@pytest.mark.parametrize("act", ["exclude", "set_weight"])
def test_only_what_waits_is_changed(store: Store, new: New, by: str, act: str) -> None:
    before = one_of_each(store, new)
    other = store.examples.add(new("Not meant."))
    which: Any = Filter(search="question")
    if by == "ids":
        which = [*(example.id for example in before.values()), "ex_none", before["pending"].id]
    changed = (
        store.bulk.exclude(which, "by the owner") if act == "exclude" else store.bulk.set_weight(which, 7)
    )
    left = {"held by a run": 1, "learned already": 1, "superseded": 1, "excluded already": 1}
    assert changed == Changed(3, left | ({"unknown": 1} if by == "ids" else {}))
    for state, example in before.items():
        now = store.examples.get(example.id)
        if state not in ("pending", "review", "parked"):
            assert now == example, state
        elif act == "exclude":
            assert (now.state, now.note, now.run_id) == ("excluded", "by the owner", None)
        else:
            assert (now.state, now.weight, now.note) == (state, 7.0, "before")
    assert store.examples.get(other.id) == other


def test_a_filter_means_all_it_lets_through(store: Store, new: New) -> None:
    for number in range(120):
        store.examples.add(new(f"Q{number}", device="den" if number % 2 else None, weight=1.0 + number % 3))
    assert store.bulk.exclude(Filter(device="den", weight_from=3)) == Changed(20, {})
    assert store.bulk.exclude(Filter(device="den", weight_from=3)) == Changed(0, {"excluded already": 20})
    assert store.bulk.set_weight(Filter(states=("pending",), search="q1"), 5.0).count == 25
    assert store.browse.count(Filter(weight_from=5)).count == 25
    assert store.bulk.set_weight([], 5.0) == store.bulk.exclude(()) == Changed(0, {})
    assert store.bulk.exclude(Filter(device="attic")) == Changed(0, {})


def test_the_note_is_found_and_the_mirror_follows(store: Store, home: Home, new: New) -> None:
    first, second = (store.examples.add(new(f"Q{number}")) for number in range(2))
    mirror = QueueMirror(store, home)
    mirror.start()
    try:
        store.bulk.set_weight([second.id], 9.0)
        mirror.flush()
        weights = [json.loads(line)["weight"] for line in home.queue.read_text().splitlines()]
        assert weights == [1.0, 9.0]
        store.bulk.exclude([first.id], "Nonsense")
        mirror.flush()
        assert [json.loads(line)["id"] for line in home.queue.read_text().splitlines()] == [second.id]
    finally:
        mirror.stop()
    assert [e.id for e in store.browse.page(Filter(search="nonsense")).examples] == [first.id]


def test_excluding_feedback_keeps_its_answer_rejected(store: Store, new: New) -> None:
    critique = store.examples.add(new("Q", "No.", kind="critique", target=None, state="review"))
    store.examples.reject_answer("Q", "No.", critique.id)
    assert store.bulk.exclude([critique.id]).count == 1
    assert store.examples.is_rejected("Q", "No.")


def test_it_is_one_transaction(store: Store, new: New) -> None:
    added = [store.examples.add(new(f"Q{number}")) for number in range(3)]
    told: list[frozenset[str]] = []
    store.on_change(told.append)
    with pytest.raises(ValueError, match="stop"), store.transaction():
        store.bulk.set_weight(Filter(), 3.0)
        store.bulk.exclude([added[0].id])
        raise ValueError("stop")
    assert [store.examples.get(example.id) for example in added] == added
    store.bulk.set_weight(Filter(), 3.0)
    assert told == [{"examples"}]


@pytest.mark.parametrize("weight", [0.0, -1.0, MAX_WEIGHT + 1, float("nan"), float("inf")])
def test_a_weight_that_cannot_be(store: Store, new: New, weight: float) -> None:
    example = store.examples.add(new())
    with pytest.raises(InvalidRequest) as caught:
        store.bulk.set_weight([example.id], weight)
    assert caught.value.param == "weight"
    with pytest.raises(InvalidRequest) as caught:
        store.bulk.exclude([example.id], "\ud800")
    assert caught.value.param == "note"
    assert store.examples.get(example.id) == example


def test_what_was_taken_out_comes_back(store: Store, new: New) -> None:
    plain = store.examples.add(new("plain", state="excluded", note="by the owner"))
    store.examples.add(new("parked", state="parked", note="draft: by the model"))
    store.examples.add(new("critique", "No.", kind="critique", target="Yes.", state="excluded"))
    store.examples.add(new("bare", "No.", kind="critique", target=None, state="excluded"))
    store.examples.add(new("rejected", "Wrong.", state="excluded"))
    store.examples.reject_answer("rejected", "Wrong.", None)
    replaced = store.examples.add(new("replaced", state="parked"))
    with store.database.transaction() as tx:
        tx.execute("UPDATE examples SET superseded_by = ? WHERE id = ?", (plain.id, replaced.id))
    waiting, used = store.examples.add(new("waiting")), store.examples.add(new("used", state="used"))
    changed = store.bulk.put_back(Filter())
    assert changed == Changed(4, {REPLACED: 2, "in the queue already": 1, "learned already": 1})
    states = {example.query: (example.state, example.note) for example in store.browse.each()}
    assert states == {
        "plain": ("pending", None),
        "parked": ("review", "draft: by the model"),
        "critique": ("review", None),
        "bare": ("review", None),
        "rejected": ("excluded", None),
        "replaced": ("parked", None),
        "waiting": ("pending", None),
        "used": ("used", None),
    }
    assert store.bulk.put_back([waiting.id, used.id, "ex_none"]).count == 0
