"""What it means to edit an example that waits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from appliance.errors import Conflict, InvalidRequest, NotFound
from appliance.home import Home
from appliance.learning.editing import edit_example
from appliance.store import Store
from appliance.store.example import DRAFT_NOTE, Example
from appliance.store.examples import NewExample
from appliance.store.mirror import QueueMirror


@pytest.fixture
def store(home: Home) -> Iterator[Store]:
    opened = Store.open(home)
    yield opened
    opened.close()


def add(store: Store, response: str = "Rome.", **fields: Any) -> Example:
    messages = [{"role": "user", "content": "Capital of France?"}]
    given = {"kind": "automatic", "target": response, "weight": 1.0, "messages": messages} | fields
    return store.examples.add(NewExample(query="Capital of France?", response=response, **given))


@pytest.mark.parametrize("kind", ["automatic", "praise"])
def test_another_answer_is_a_correction(store: Store, home: Home, kind: str) -> None:
    earlier = add(store, "Lyon.")
    example = add(store, kind=kind, finish_reason="length")
    store.examples.reject_answer("Capital of France?", "Paris.", None)
    mirror = QueueMirror(store, home)
    edited = edit_example(store, example.id, " Paris. ", 10.0)
    assert (edited.kind, edited.target, edited.correction) == ("correction", "Paris.", "Paris.")
    assert (edited.weight, edited.rating, edited.finish_reason) == (10.0, "down", "stop")
    assert store.examples.is_rejected("Capital of France?", "Rome.")
    assert not store.examples.is_rejected("Capital of France?", "Paris.")
    assert store.examples.get(earlier.id).superseded_by == example.id
    mirror.flush()
    (line,) = [json.loads(line) for line in home.queue.read_text().splitlines()]
    assert (line["correction"], line["weight"]) == ("Paris.", 10.0)


def test_the_same_answer_changes_the_weight_only(store: Store) -> None:
    example = add(store)
    edited = edit_example(store, example.id, "Rome.\n", 2.0)
    assert (edited.kind, edited.target, edited.weight) == ("automatic", "Rome.", 2.0)
    assert not store.examples.is_rejected("Capital of France?", "Rome.")


def test_a_correction_of_form_rejects_nothing(store: Store) -> None:
    example = add(store, "paris")
    assert edit_example(store, example.id, "Paris", 1.0).kind == "correction"
    assert not store.examples.is_rejected("Capital of France?", "paris")


def test_a_draft_that_was_edited_is_reviewed(store: Store) -> None:
    example = add(store, kind="critique", target="Lyon.", note=f"{DRAFT_NOTE} by the model")
    assert (edit_example(store, example.id, "Lyon.", 2.0).note or "").startswith(DRAFT_NOTE)
    edited = edit_example(store, example.id, "Paris.", 2.0)
    assert (edited.kind, edited.note, edited.target) == ("critique", "reviewed", "Paris.")


@pytest.mark.parametrize(
    ("fields", "target", "weight", "param"),
    [
        ({}, "  ", 1.0, "target"),
        ({}, "Paris.", 0.0, "weight"),
        ({}, "Paris.", 1001.0, "weight"),
        ({}, "Paris.", float("nan"), "weight"),
        ({"kind": "critique", "target": "Lyon."}, "rome", 1.0, "target"),
        ({"kind": "correction", "target": "Lyon."}, "Rome.", 1.0, "target"),
        ({}, "\ud800", 1.0, "target"),
    ],
)
def test_what_cannot_be_changes_nothing(
    store: Store, fields: dict[str, Any], target: str, weight: float, param: str
) -> None:
    example = add(store, **fields)
    with pytest.raises(InvalidRequest) as caught:
        edit_example(store, example.id, target, weight)
    assert caught.value.param == param
    assert store.examples.get(example.id) == example
    assert not store.examples.is_rejected("Capital of France?", "Rome.")


def test_only_what_waits_is_edited(store: Store) -> None:
    used = add(store, state="used")
    with pytest.raises(Conflict):
        edit_example(store, used.id, "Paris.", 1.0)
    assert store.examples.get(used.id) == used
    assert not store.examples.is_rejected("Capital of France?", "Rome.")
    with pytest.raises(NotFound):
        edit_example(store, "ex_none", "Paris.", 1.0)
