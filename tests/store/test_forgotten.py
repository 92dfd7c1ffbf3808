"""What deleting leaves behind, and what it must not."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

import pytest

from appliance.errors import Unavailable
from appliance.home import Home
from appliance.store import Store
from appliance.store.examples import NewExample

New = Callable[..., NewExample]
SECRET = "xylophone-4711"


def holding(home: Home) -> list[str]:
    return [path.name for path in home.root.glob("store.db*") if SECRET.encode() in path.read_bytes()]


def test_rewriting_takes_away_what_earlier_deletions_left(store: Store, home: Home, new: New) -> None:
    """As in a home whose rows were deleted before deleting meant overwriting."""
    ids = [store.examples.add(new(f"{SECRET} {number} " * 90)).id for number in range(40)]
    store.close()
    old = sqlite3.connect(home.store)
    old.execute("PRAGMA secure_delete = OFF")
    old.executemany("DELETE FROM examples WHERE id = ?", [(example,) for example in ids[:39]])
    old.commit()
    old.close()
    assert holding(home)
    store = Store.open(home)
    store.forgotten.erase(store.forgotten.traces(ids[39:]), {})
    assert store.examples.count() == 0
    store.database.scrub()
    assert holding(home) == []
    with store.transaction(), pytest.raises(RuntimeError):
        store.database.scrub()
    store.close()


def test_a_reader_elsewhere_is_waited_for_then_named(
    store: Store, home: Home, new: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.store.db.BUSY_SECONDS", 0.2)
    example = store.examples.add(new(SECRET))
    other = sqlite3.connect(home.store, isolation_level=None)
    other.execute("BEGIN")
    other.execute("SELECT * FROM examples").fetchone()
    impatient = Store.open(home)
    impatient.forgotten.erase(impatient.forgotten.traces([example.id]), {})
    with pytest.raises(Unavailable, match="in use by another program"):
        impatient.database.scrub()
    other.close()
    impatient.database.scrub()
    assert holding(home) == []
    impatient.close()


def test_the_same_question(store: Store, new: New) -> None:
    """A sentence is the same wherever it is said; "Why?" only in the same conversation."""
    long, short = "Where do the spare keys lie?", "Why?"

    def talk(*turns: str) -> str:
        messages = [{"role": "user", "content": turn} for turn in turns]
        return store.examples.add(new(turns[-1], messages=messages)).id

    first, second, third = talk(long), talk("Hello", f"  {long.upper()}"), talk(long, short)
    bare, other = talk(short), talk("Hello", short)
    parts = [{"role": "user", "content": [{"type": "text", "text": long}]}]
    fourth = store.examples.add(new("x", messages=parts)).id
    assert store.forgotten.traces([first]).examples == {first, second, third, fourth}
    assert store.forgotten.traces([bare]).examples == {bare}
    assert store.forgotten.traces([other]).examples == {other}
    assert store.forgotten.traces([third]).examples == {third}
    assert store.forgotten.traces([]).examples == frozenset()


def test_requeueing_leaves_out_what_people_have_said_no_to(store: Store, new: New) -> None:
    run = store.runs.create("person", 3)
    good, wrong, old = (store.examples.add(new(f"Question {number}?", "So.")) for number in range(3))
    store.examples.hold(run.id, [good.id, wrong.id, old.id])
    store.examples.mark_used(run.id)
    store.examples.reject_answer(wrong.query, "So.", None)
    better = store.examples.add(new(old.query, "So.", kind="correction", target="Thus."))
    store.examples.supersede(old.query, better.id)
    assert store.examples.requeue([run.id]) == 1
    assert {example.id for example in store.examples.pending()} == {good.id, better.id}
