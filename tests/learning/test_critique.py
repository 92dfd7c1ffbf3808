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
from appliance.store.examples import Example, NewExample

NOTE = "Wrong answer! Should be 4"
FOUR = "Wrong answer! Should be four"
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


async def test_a_good_draft_is_shown_and_waits_for_a_person(store: Store) -> None:
    model = Model(" It is four. ")
    drafted = await draft_critique(store, criticise(store, FOUR), model)
    assert (drafted.state, drafted.target) == ("review", "It is four.")
    assert drafted.drafted
    assert store.examples.review() == [drafted]
    assert store.examples.pending() == []
    talk = model.asked[0]
    assert talk[1] == {"role": "assistant", "content": "5"}
    assert FOUR in talk[-1]["content"]
    assert store.examples.undrafted() == [], "and is not drafted again at the next start"


async def test_a_second_try(store: Store) -> None:
    drafted = await draft_critique(store, criticise(store, FOUR), Model("5", "It is four"))
    assert drafted.target == "It is four"


async def test_a_number_in_the_note_is_enough(store: Store) -> None:
    """It is no draft but what the person wrote, word for word: the model is not even asked."""
    taken = await draft_critique(store, criticise(store), Model())
    assert (taken.state, taken.target) == ("pending", "4")
    assert not taken.drafted
    assert store.examples.review() == []


@pytest.mark.parametrize(
    ("note", "number"),
    [
        ("Should be 12 km.", True),
        ("It should be -3 \u00b0C", True),
        ("Must be $30", True),
        ("Should be 2 lines", False),
        ("Should be 3 times longer", False),
        ("Should be 45 or 50", False),
        ("The answer is wrong", False),
        ("Should be Ben", False),
    ],
)
async def test_only_a_number_is_taken_word_for_word(store: Store, note: str, number: bool) -> None:
    example = criticise(store, note)
    settled = await draft_critique(store, example, Model("no", "no"))
    assert (settled.state == "pending") is number, settled


def test_a_draft_is_held_by_no_run(store: Store) -> None:
    """Whatever its state says: one that an earlier release had put into the queue, or parked, too."""
    run = store.runs.create("person", 3, None)
    drafts = [
        store.examples.add(
            NewExample(
                "critique", f"q{state}", "5", "four", 10.0, [], note="draft: by the model", state=state
            )
        )
        for state in ("pending", "parked", "review")
    ]
    ids = [draft.id for draft in drafts]
    assert store.examples.hold(run.id, ids) == []
    assert store.examples.waiting(ids, run.id) == ()
    assert store.bulk.put_back(ids).count == 1
    assert store.examples.count("review") == 2


async def test_what_a_run_gives_back_waits_for_a_person_again(store: Store) -> None:
    """A draft that an earlier release trained unseen, when its adapter is given up."""
    run = store.runs.create("person", 1, None)
    draft = store.examples.add(
        NewExample("critique", "q", "5", "four", 10.0, [], note="draft: by the model", state="training")
    )
    store.examples.update(draft.id, run_id=run.id)
    store.examples.mark_used(run.id)
    store.examples.requeue([run.id])
    assert store.examples.get(draft.id).state == "review"
    store.examples.update(draft.id, state="training", run_id=run.id)
    store.examples.release(run.id)
    assert store.examples.get(draft.id).state == "review"


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
    drafted = await draft_critique(store, criticise(store, FOUR), Model(Unavailable("no model")))
    assert drafted.state == "review"
    assert "no model" in (drafted.note or "")


async def test_a_person_may_be_faster(store: Store) -> None:
    example = criticise(store, FOUR)

    class Slow(Model):
        async def __call__(self, messages: list[dict[str, Any]]) -> str:
            give_feedback(store, Config(), Feedback("What is 2+2?", "5", correction="four"))
            return "It is 4"

    drafted = await draft_critique(store, example, Slow())
    assert drafted.state == "superseded"
    assert [found.target for found in store.examples.pending()] == ["four"]
    assert await draft_critique(store, drafted, Model()) == drafted


async def test_review(store: Store) -> None:
    drafted = await draft_critique(store, criticise(store, FOUR), Model("It is four"))
    with pytest.raises(InvalidRequest, match="rejected"):
        accept_review(store, drafted.id, "**5**")
    with pytest.raises(InvalidRequest):
        accept_review(store, drafted.id, "  ")
    accepted = accept_review(store, drafted.id)
    assert (accepted.target, accepted.state) == ("It is four", "pending")
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
