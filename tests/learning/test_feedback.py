from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.config import Config
from appliance.errors import InvalidRequest, NotFound, StorageFull
from appliance.events import EventBus
from appliance.home import Home
from appliance.learning.feedback import Feedback, give_feedback
from appliance.store import Store
from appliance.store.examples import Example, NewExample

CONFIG = Config()
ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2+2?"}]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(Home(tmp_path / "home"))
    yield opened
    opened.close()


def answered(store: Store, id: str = "c1", response: str = "5", reason: str = "stop") -> Example:
    """An exchange as the collector leaves it."""
    store.completions.record(id, 1.0, "dev_1", "m", None, "What is 2+2?", response, ASKED, reason, 9, 1)
    finish = "length" if reason == "length" else "stop"
    return store.examples.add(
        NewExample(
            "automatic",
            "What is 2+2?",
            response,
            response,
            1.0,
            ASKED,
            completion_id=id,
            finish_reason=finish,
        )
    )


def give(store: Store, **fields: Any) -> Example:
    return give_feedback(store, CONFIG, Feedback(**fields))


QA = {"query": "What is 2+2?", "response": "5"}


@pytest.mark.parametrize(
    "fields, kind, weight",
    [
        ({}, "praise", 1.0),
        ({"rating": "up"}, "praise", 1.0),
        ({"rating": "up", "weight": "high", "feedback": "Great!"}, "praise", 10.0),
        ({"weight": 1.0}, "praise", 1.0),
        ({"weight": 0.5}, "praise", 0.5),
        ({"correction": "4"}, "correction", 1.0),
        ({"correction": "4", "weight": "high", "rating": "down"}, "correction", 10.0),
        ({"weight": "medium", "feedback": "Wrong!"}, "critique", 3.0),
        ({"weight": "high", "feedback": "Wrong answer! Should be 4"}, "critique", 10.0),
        ({"weight": "high"}, "critique", 10.0),
        ({"weight": 7}, "critique", 7.0),
        ({"rating": "down"}, "critique", 1.0),
        ({"feedback": "Hm."}, "critique", 1.0),
        ({"feedback": " ", "correction": ""}, "praise", 1.0),
    ],
)
def test_kinds(store: Store, fields: dict, kind: str, weight: float) -> None:
    example = give(store, **QA, **fields)
    assert (example.kind, example.weight) == (kind, weight)
    target = {"praise": "5", "correction": "4", "critique": None}[kind]
    assert example.target == target
    assert example.state == ("review" if kind == "critique" else "pending")
    assert example.messages == [{"role": "user", "content": "What is 2+2?"}]
    assert store.examples.get(example.id) == example
    assert store.examples.rejected_answers("What is 2+2?") == (set() if kind == "praise" else {"5"})


@pytest.mark.parametrize(
    "fields", [{"weight": "high", "feedback": "Wrong"}, {"rating": "down"}, {"weight": 50}]
)
def test_a_rejected_answer_is_never_a_target(store: Store, fields: dict) -> None:
    answered(store)
    answered(store, "c2")
    give(store, **QA, **fields)
    trainable = [*store.examples.pending(), *store.examples.list("training")]
    assert [example for example in trainable if example.target == "5"] == []


@pytest.mark.parametrize(
    "fields, param",
    [
        ({"query": None}, "query"),
        ({"query": "  "}, "query"),
        ({"query": 3}, "query"),
        ({"response": None}, "response"),
        ({"response": ["x"]}, "response"),
        ({"response": " "}, "response"),
        ({"weight": "huge"}, "weight"),
        ({"weight": 0}, "weight"),
        ({"weight": -1.5}, "weight"),
        ({"weight": float("nan")}, "weight"),
        ({"weight": float("inf")}, "weight"),
        ({"weight": 1e9}, "weight"),
        ({"weight": True}, "weight"),
        ({"weight": None}, "weight"),
        ({"rating": "sideways"}, "rating"),
        ({"feedback": 5}, "feedback"),
        ({"correction": {}}, "correction"),
        ({"correction": "5 "}, "correction"),
        ({"correction": "\ud800"}, "correction"),
        ({"query": "\ud800"}, "query"),
    ],
)
def test_what_makes_no_sense_is_refused(store: Store, fields: dict, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        give(store, **(QA | fields))
    assert caught.value.param == param
    assert caught.value.status == 400
    assert store.examples.count() == 0


def test_by_completion_id(store: Store) -> None:
    answered(store)
    example = give(store, completion_id="c1", correction="4")
    assert (example.query, example.response, example.messages) == ("What is 2+2?", "5", ASKED)
    assert (example.device, example.completion_id) == ("dev_1", "c1")


def test_by_query_and_response_finds_the_conversation(store: Store) -> None:
    answered(store)
    example = give(store, query="what is 2+2", response="5.", correction="4")
    assert (example.messages, example.completion_id) == (ASKED, "c1")
    assert store.examples.list("superseded")[0].completion_id == "c1"


def test_unknown_completion(store: Store) -> None:
    with pytest.raises(NotFound) as caught:
        give(store, completion_id="c9", rating="up")
    assert caught.value.param == "completion_id"
    assert give(store, completion_id="c9", rating="up", **QA).completion_id == "c9"


def test_a_completion_that_opted_out_has_no_texts(store: Store) -> None:
    store.completions.record("c1", 1.0, None, "m", None, "", "", [], "stop", 9, 1)
    with pytest.raises(InvalidRequest) as caught:
        give(store, completion_id="c1", rating="up")
    assert caught.value.param == "query"
    assert give(store, completion_id="c1", rating="up", **QA).target == "5"


@pytest.mark.parametrize("param", ["query", "response"])
def test_the_wrong_completion(store: Store, param: str) -> None:
    answered(store)
    with pytest.raises(InvalidRequest) as caught:
        give(store, **{"completion_id": "c1", "rating": "up", param: "something else"})
    assert caught.value.param == param


def test_correction_supersedes(store: Store) -> None:
    automatic = [answered(store), answered(store, "c2", "6")]
    critique = give(store, completion_id="c1", rating="down")
    correction = give(store, completion_id="c1", correction="4")
    assert [store.examples.get(e.id).state for e in (*automatic, critique)] == ["superseded"] * 3
    assert store.examples.pending() == [correction]
    second = give(store, completion_id="c1", correction="four")
    assert store.examples.pending() == [second]


def test_correcting_the_form_rejects_nothing(store: Store) -> None:
    give(store, query="Capital of France?", response="paris", correction="Paris")
    assert store.examples.rejected_answers("Capital of France?") == set()


def test_the_last_word_counts(store: Store) -> None:
    answered(store)
    correction = give(store, completion_id="c1", correction="4")
    praise = give(store, completion_id="c1", rating="up")
    assert store.examples.rejected_answers("What is 2+2?") == set()
    assert store.examples.get(correction.id).state == "superseded"
    assert store.examples.pending() == [praise]
    give(store, **QA, correction="4")
    give(store, query="What is 2+2?", response="4", correction="5")
    assert store.examples.rejected_answers("What is 2+2?") == {"4"}
    assert [example.target for example in store.examples.pending()] == ["5"]


def test_praise_replaces_the_exchange_it_is_about(store: Store) -> None:
    first, second = answered(store, "c1", "4"), answered(store, "c2", "4")
    praise = give(store, completion_id="c1", rating="up", weight="high")
    assert store.examples.get(first.id).superseded_by == praise.id
    assert store.examples.get(first.id).state == "superseded"
    assert [(e.id, e.weight) for e in store.examples.pending()] == [(second.id, 1.0), (praise.id, 10.0)]


def test_praise_twice_counts_once(store: Store) -> None:
    answered(store, "c1", "4")
    give(store, completion_id="c1", rating="up")
    last = give(store, completion_id="c1", rating="up", weight="medium")
    assert store.examples.pending() == [last]
    give(store, query="Other?", response="x")
    give(store, query="Other?", response="x")
    assert len(store.examples.pending()) == 2


def test_praise_of_an_exchange_that_a_run_holds(store: Store) -> None:
    automatic = answered(store, "c1", "4")
    run = store.runs.create("person", 1)
    store.examples.hold(run.id, [automatic.id])
    praise = give(store, completion_id="c1", rating="up")
    assert store.examples.release(run.id) == 0
    assert store.examples.pending() == [praise]


def test_praise_of_a_cut_off_answer_stays_cut_off(store: Store) -> None:
    answered(store, "c1", "4 and", reason="length")
    assert give(store, completion_id="c1", rating="up").finish_reason == "length"
    assert give(store, completion_id="c1", correction="4").finish_reason == "stop"


@pytest.mark.parametrize(
    "note, answered_already",
    [(None, True), ("Still wrong!", True), ("Should be 4", True), ("Should be 3", False)],
)
def test_a_critique_does_not_undo_a_waiting_correction(
    store: Store, note: str | None, answered_already: bool
) -> None:
    correction = give(store, **QA, correction="It is 4.")
    critique = give(store, query="What is 2+2?", response="6", rating="down", feedback=note)
    assert critique.state == ("superseded" if answered_already else "review")
    assert store.examples.get(correction.id).state == ("pending" if answered_already else "superseded")
    assert store.examples.rejected_answers("What is 2+2?") == {"5", "6"}


def test_a_critique_of_what_was_taught_undoes_it(store: Store) -> None:
    correction = give(store, **QA, correction="6")
    critique = give(store, query="What is 2+2?", response="6", rating="down")
    assert critique.state == "review"
    assert store.examples.get(correction.id).state == "superseded"
    assert store.examples.count("pending") == 0


def test_one_transaction(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    automatic = answered(store)

    def full(*args: Any, **kwargs: Any) -> int:
        raise StorageFull("full")

    monkeypatch.setattr(store.examples, "supersede", full)
    with pytest.raises(StorageFull):
        give(store, completion_id="c1", correction="4")
    assert store.examples.pending() == [automatic]
    assert store.examples.count() == 1
    assert store.examples.rejected_answers("What is 2+2?") == set()


def test_tells_the_bus(store: Store) -> None:
    events = EventBus()
    example = give_feedback(store, CONFIG, Feedback(**QA, correction="4"), events=events)
    (event,) = events.recent()
    assert event.name == "feedback.given"
    assert event.data == {"id": example.id, "kind": "correction", "state": "pending", "pending": 1}
