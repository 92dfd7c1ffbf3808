"""Answers that belong together: listed by their end, read in order, forgotten at once."""

from __future__ import annotations

import time

from appliance.store import Store
from appliance.store.completions import TITLE, Conversation


def say(store: Store, id: str, conversation: str | None, *questions: str, system: str = "") -> None:
    messages = [{"role": "system", "content": system}] if system else []
    for question in questions[:-1]:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": "Yes."}]
    messages.append({"role": "user", "content": questions[-1]})
    store.completions.record(
        id, 5.0, None, "m", "adapter_a", questions[-1], "Yes.", messages, "stop", 3, 1, conversation, 0.5
    )


def test_a_conversation_is_known_by_its_end_and_called_by_its_first_question(store: Store) -> None:
    assert store.completions.conversations() == []
    say(store, "c1", "one", "First?", system="Be brief.")
    say(store, "c2", "two", "Another?")
    say(store, "c3", None, "By itself?")
    say(store, "c4", "one", "First?", "Second?", system="Be brief.")
    one = Conversation("one", "First?", "c4", 5.0, "adapter_a")
    assert store.completions.conversations() == [one, Conversation("two", "Another?", "c2", 5.0, "adapter_a")]
    assert store.completions.conversations(1) == [one]
    assert [found.id for found in store.completions.conversation("one")] == ["c1", "c4"]
    assert store.completions.conversation("one")[0].seconds == 0.5
    assert store.completions.end_of("one") == "c4"
    assert store.completions.end_of("three") is None


def test_what_has_no_question_is_called_by_its_query_and_long_titles_are_cut(store: Store) -> None:
    store.completions.record("c1", 1.0, None, "m", None, "Q", "A", [], "stop", 1, 1, "one")
    say(store, "c2", "two", "x" * 1000)
    assert [found.title for found in store.completions.conversations()] == ["x" * TITLE, "Q"]


def test_forgetting_a_conversation_leaves_the_others(store: Store) -> None:
    for id, conversation in (("c1", "one"), ("c2", "two"), ("c3", None), ("c4", "one")):
        say(store, id, conversation, "A question?")
    assert store.completions.forget_conversation("one") == 2
    assert store.completions.forget_conversation("one") == 0
    assert store.completions.get("c1") is store.completions.get("c4") is None
    assert [found.id for found in store.completions.recent()] == ["c3", "c2"]


def test_a_full_table_is_listed_quickly(store: Store) -> None:
    with store.transaction():
        for number in range(10_000):
            say(store, f"c{number}", f"v{number // 3}", "A question? " * 20)
    started = time.perf_counter()
    assert len(store.completions.conversations(30)) == 30
    assert time.perf_counter() - started < 0.05
