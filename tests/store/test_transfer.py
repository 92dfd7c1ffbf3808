from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest

from appliance.errors import Conflict, InvalidRequest
from appliance.home import Home
from appliance.store import Store
from appliance.store.browse import Filter
from appliance.store.example import STATES
from appliance.store.examples import NewExample
from appliance.store.transfer import FIELDS

New = Callable[..., NewExample]


@pytest.fixture
def elsewhere(home: Home) -> Iterator[Store]:
    """The store of another box."""
    opened = Store.open(Home(home.root / "elsewhere"))
    yield opened
    opened.close()


def line(query: str = "Q", response: str = "A", kind: str = "automatic", **fields: Any) -> str:
    return json.dumps({"kind": kind, "query": query, "response": response} | fields)


def test_there_and_back(store: Store, elsewhere: Store, new: New) -> None:
    for number, state in enumerate(STATES):
        messages = [{"role": "user", "content": [{"type": "text", "text": "ß\n\x00"}], "name": "x"}]
        store.examples.add(
            new(
                f"Wie heißt {state}?\n", "No", kind="correction", target="Yes", correction="Yes", state=state,
                rating="down", feedback="f", note="n", device="den", masked={"e-mail": 2}, messages=messages,
                finish_reason="length", weight=2.5, source="console", completion_id="c",
            ),
            created=100.0 + number,
        )  # fmt: skip
    lines = list(store.transfer.export())
    assert [list(json.loads(text)) for text in lines] == [list(FIELDS)] * len(STATES)
    assert "heißt" in lines[0]
    assert elsewhere.transfer.add(lines) == len(STATES)
    learned = {"training": "pending", "used": "pending"}
    wanted = [
        replace(example, completion_id=None, state=learned.get(example.state, example.state))
        for example in store.browse.each()
    ]
    assert list(elsewhere.browse.each()) == wanted
    assert elsewhere.browse.count(Filter(search="HEISST used")).count == 1
    assert elsewhere.examples.is_rejected("wie heißt excluded", "no!")
    assert not store.examples.is_rejected("wie heißt excluded", "no!")


def test_an_export_streams_and_takes_a_filter(
    store: Store, new: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(350):
        store.examples.add(new(f"Q{number}", device="den" if number % 2 else None))
    read: list[int] = []
    real = store.database.all

    def spy(sql: str, values: Any = ()) -> Any:
        rows = real(sql, values)
        read.append(len(rows))
        return rows

    monkeypatch.setattr(store.database, "all", spy)
    export = store.transfer.export(Filter(device="den"))
    assert read == []
    assert [json.loads(text)["query"] for text in islice(export, 3)] == ["Q1", "Q3", "Q5"]
    assert read == [100]
    store.bulk.exclude(Filter(device="den"))  # no lock is held between lines
    assert len(list(export)) == 172
    assert max(read) == 100


def test_the_shortest_lines(store: Store) -> None:
    before = time.time()
    assert (
        store.transfer.add(
            [line(), "", b" \n", line("R", "B", "correction", correction="C").encode() + b"\n"]
        )
        == 2
    )
    first, second = store.browse.each()
    assert (first.target, first.state, first.weight, first.source) == ("A", "pending", 1.0, "import")
    assert first.messages == [{"role": "user", "content": "Q"}]
    assert before <= first.created <= second.created <= time.time()
    assert (second.target, second.response) == ("C", "B")
    assert store.transfer.add([]) == 0


@pytest.mark.parametrize(
    "bad, param",
    [
        ("{", None),
        ("[]", None),
        ("1", None),
        (b"\xff", None),
        ("[" * 100_000, None),
        ('{"query": "\\ud800"}', "kind"),
        ("\ud800", None),
        (line(colour="red"), "colour"),
        ('{"query": "Q", "response": "A"}', "kind"),
        (line(kind="gossip"), "kind"),
        (line(query=1), "query"),  # type: ignore[arg-type]
        (line(state="lost"), "state"),
        (line(weight=0), "weight"),
        (line(weight=1e9), "weight"),
        (line(weight="1"), "weight"),
        (line(weight=float("nan")), "weight"),
        (line(created=-1), "created"),
        (line(created=4_000_000_000.0e6), "created"),
        (line(id="ex_1"), "id"),
        (line(id="ex_" + "0" * 24 + "\n"), "id"),
        (line(rating="sideways"), "rating"),
        (line(finish_reason="tool_calls"), "finish_reason"),
        (line(messages=["hello"]), "messages"),
        (line(messages=[{"content": "hello"}]), "messages"),
        (line(messages=[{"role": "user", "content": float("nan")}]), "messages"),
        (line(masked={"e-mail": "two"}), "masked"),
        (line(device=""), "device"),
        (line(target="B"), "target"),
        (line(kind="praise", target="B"), "target"),
        (line(kind="critique", target="a."), "target"),
        (line(kind="correction", response="A ", correction="A"), "target"),
        (line(kind="critique"), "target"),
        (line(kind="critique", state="used"), "target"),
        (line(kind="correction"), "target"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_imported(store: Store, bad: Any, param: str | None) -> None:
    with pytest.raises(InvalidRequest, match=r"^Line 4: .* Nothing was imported\.$") as caught:
        store.transfer.add([line("First", "No", "correction", target="Yes"), "", line("Third"), bad, line()])
    assert caught.value.param == param
    assert store.examples.count() == 0
    assert not store.examples.is_rejected("First", "No")


def test_lines_that_break_off_import_nothing(store: Store) -> None:
    def broken() -> Iterator[str]:
        yield line()
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        store.transfer.add(broken())
    assert store.examples.count() == 0


def test_what_is_there_is_refused(store: Store, elsewhere: Store, new: New) -> None:
    there = store.examples.add(new("Q", "A"))
    again = next(store.transfer.export())
    with pytest.raises(Conflict, match=f"Line 2: The example {there.id} is there already") as caught:
        store.transfer.add([line("new"), again])
    assert caught.value.param == "id"
    with pytest.raises(Conflict, match=f"Line 1: It is there already, as {there.id}") as caught:
        store.transfer.add([line("q?", "a.")])
    assert caught.value.param == "query"
    assert store.examples.count() == 1
    with pytest.raises(Conflict, match="Line 2"):
        elsewhere.transfer.add([again, again])
    other = [{"role": "user", "content": "Hello"}, {"role": "user", "content": "Q"}]
    different = [line("Q", "B"), line("Q", "A", "praise"), line("Q", "A", messages=other)]
    # Said twice before is no duplicate: exports hold such things.
    assert store.transfer.add([*different, line("twice"), line("twice")]) == 5


def test_what_was_forgotten_does_not_come_back(store: Store, new: New) -> None:
    example = store.examples.add(new("Where do the spare keys lie?"))
    lines = list(store.transfer.export())
    store.forgotten.erase(store.forgotten.traces([example.id]), {})
    with pytest.raises(Conflict, match=r"Line 1: .* has been forgotten"):
        store.transfer.add(lines)
    assert store.examples.count() == 0


def test_what_people_said_no_to_does_not_come_back(store: Store) -> None:
    store.examples.reject_answer("Q", "A", None)
    with pytest.raises(Conflict, match="rejected this answer"):
        store.transfer.add([line("Q", "A")])
    assert store.transfer.add([line("Q", "A", state="excluded")]) == 1
    with pytest.raises(Conflict, match="there already"):  # nor what was excluded
        store.transfer.add([line("Q", "A", "praise"), line("Q", "A")])
    other = [{"role": "user", "content": "Hello"}, {"role": "user", "content": "Q"}]
    assert store.transfer.add([line("Q", "A", "praise"), line("Q", "A", messages=other)]) == 2


def test_feedback_does_what_it_always_does(store: Store, new: New) -> None:
    wrong = store.examples.add(new("What is 2+2?", "5"))
    told = [
        line("What is 2+2?", "5", "critique", state="review", feedback="No!"),
        line("What is 2+2?", "5", "correction", target="4"),
    ]
    assert store.transfer.add(told) == 2
    assert store.examples.get(wrong.id).state == "superseded"
    assert store.examples.is_rejected("What is 2+2?", "5")
    feedback = store.browse.each(Filter(kinds=("critique", "correction")))
    assert [(example.kind, example.state) for example in feedback] == [
        ("critique", "superseded"),
        ("correction", "pending"),
    ]


def test_what_was_superseded_after_it_was_learned_is_not_learned_elsewhere(
    store: Store, elsewhere: Store, new: New
) -> None:
    run = store.runs.create("person", 1)
    wrong = store.examples.add(new("What is 2+2?", "5"))
    store.examples.hold(run.id, [wrong.id])
    store.examples.mark_used(run.id)
    right = store.examples.add(new("What is 2+2?", "5", kind="correction", target="4"))
    store.examples.supersede("What is 2+2?", right.id)
    assert store.examples.get(wrong.id).state == "used"
    assert elsewhere.transfer.add(store.transfer.export()) == 2
    assert elsewhere.examples.get(wrong.id).state == "superseded"
    assert [example.id for example in elsewhere.examples.pending()] == [right.id]
