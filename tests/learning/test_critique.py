from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.config import Config
from appliance.errors import Conflict, InvalidRequest, Unavailable
from appliance.home import Home
from appliance.learning.critique import (
    accept_review,
    check_draft,
    discard_review,
    draft_critique,
    mentions,
    stated_answer,
)
from appliance.learning.feedback import Feedback, give_feedback
from appliance.store import Store
from appliance.store.examples import Example

NOTE = "Wrong answer! Should be 4"
LONG = "Cats purr because they are quite content"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(Home(tmp_path / "home"))
    yield opened
    opened.close()


def criticise(store: Store, note: str | None = NOTE, **fields: str) -> Example:
    given = {"query": "What is 2+2?", "response": "5", **fields}
    return give_feedback(store, Config(), Feedback(**given, feedback=note, rating="down", weight="high"))


class Model:
    """Says what it is told to, in order, and remembers what it was asked."""

    def __init__(self, *answers: str | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[list[dict[str, Any]]] = []

    async def __call__(self, messages: list[dict[str, Any]]) -> str:
        self.asked.append(messages)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.mark.parametrize(
    "note, answer",
    [
        ("Wrong answer! Should be 4", "4"),
        ("should have been 12 km.", "12 km"),
        ("It should be Ben, not Tom.", "Ben"),
        ("The answer is 3.5.", "3.5"),
        ("No. The correct answer is: Paris!", "Paris"),
        ('Must be "blue".', "blue"),
        ("It's actually Peter", "Peter"),
        ("Should be shorter", None),
        ("Should be more polite, please", None),
        ("Should be in German", None),
        ("Wrong!", None),
        ("", None),
        ("It should be " + "very long " * 20, None),
    ],
)
def test_stated_answer(note: str, answer: str | None) -> None:
    assert stated_answer(note) == answer


def test_mentions_whole_words() -> None:
    assert mentions("It is 4.", "4")
    assert not mentions("It is 42.", "4")
    assert mentions("It is Ben's.", "ben")
    assert not mentions("anything", "")


@pytest.mark.parametrize(
    "note, response, draft, good",
    [
        (NOTE, "5", "4", True),
        (NOTE, "5", "2+2 is 4.", True),
        (NOTE, "5", "**5!**", False),
        (NOTE, "5", "It is 6.", False),
        (NOTE, "5", "It is 42.", False),
        (NOTE, "5", "It is 4, not 5.", False),
        (NOTE, "5", "I apologize. It is 4.", False),
        (NOTE, "5", "Sorry, 4.", False),
        (NOTE, "5", NOTE, False),
        (NOTE, "5", "  ", False),
        (NOTE, "It is 5.", "4", True),
        ("Wrong!", "The answer is 5.", "5", False),
        ("Wrong!", "5", "The answer is 5.", False),
        ("Wrong!", "5", "Four", True),
        ("Wrong!", "5", "wrong", False),
        ("Should be 45", "45 or 50, who knows", "45", True),
        ("Should be longer", LONG, f"{LONG} or ill.", True),
    ],
)
def test_check(store: Store, note: str, response: str, draft: str, good: bool) -> None:
    example = criticise(store, note, response=response)
    problem = check_draft(example, draft)
    assert (problem is None) == good, problem


async def test_a_good_draft_is_trainable_and_shown(store: Store) -> None:
    model = Model(" It is 4. ")
    drafted = await draft_critique(store, criticise(store), model)
    assert (drafted.state, drafted.target) == ("pending", "It is 4.")
    assert drafted.note is not None
    assert drafted.note.startswith("draft:")
    assert store.examples.review() == store.examples.pending() == [drafted]
    talk = model.asked[0]
    assert talk[1] == {"role": "assistant", "content": "5"}
    assert NOTE in talk[-1]["content"]


async def test_a_second_try(store: Store) -> None:
    drafted = await draft_critique(store, criticise(store), Model("5", "It is 4"))
    assert drafted.target == "It is 4"


async def test_a_number_in_the_note_is_enough(store: Store) -> None:
    drafted = await draft_critique(store, criticise(store), Model("5", "I apologize"))
    assert (drafted.state, drafted.target) == ("pending", "4")


async def test_a_bad_draft_is_not_trained(store: Store) -> None:
    example = criticise(store, "Should be Ben", query="My son's name?", response="Tom")
    drafted = await draft_critique(store, example, Model("Tom", "It is Tim"))
    assert (drafted.state, drafted.target) == ("review", None)
    assert "It is Tim" in (drafted.note or "")
    assert store.examples.pending() == []
    assert store.examples.review() == [drafted]


async def test_no_note_no_draft(store: Store) -> None:
    model = Model()
    drafted = await draft_critique(store, criticise(store, None), model)
    assert drafted.state == "review"
    assert model.asked == []


async def test_a_model_that_fails(store: Store) -> None:
    drafted = await draft_critique(store, criticise(store), Model(Unavailable("no model")))
    assert drafted.state == "review"
    assert "no model" in (drafted.note or "")


async def test_a_person_may_be_faster(store: Store) -> None:
    example = criticise(store)

    class Slow(Model):
        async def __call__(self, messages: list[dict[str, Any]]) -> str:
            give_feedback(store, Config(), Feedback("What is 2+2?", "5", correction="four"))
            return "It is 4"

    drafted = await draft_critique(store, example, Slow())
    assert drafted.state == "superseded"
    assert [found.target for found in store.examples.pending()] == ["four"]
    assert await draft_critique(store, drafted, Model()) == drafted


async def test_review(store: Store) -> None:
    drafted = await draft_critique(store, criticise(store), Model("It is 4"))
    with pytest.raises(InvalidRequest, match="rejected"):
        accept_review(store, drafted.id, "**5**")
    with pytest.raises(InvalidRequest):
        accept_review(store, drafted.id, "  ")
    accepted = accept_review(store, drafted.id)
    assert (accepted.target, accepted.state) == ("It is 4", "pending")
    assert store.examples.review() == []
    with pytest.raises(Conflict):
        discard_review(store, drafted.id)

    other = criticise(store, None, query="Q?")
    with pytest.raises(InvalidRequest):
        accept_review(store, other.id)
    assert accept_review(store, other.id, " Mine. ").target == "Mine."
    third = criticise(store, None, query="R?")
    assert discard_review(store, third.id).state == "excluded"
    assert store.examples.rejected_answers("R?") == {"5"}
