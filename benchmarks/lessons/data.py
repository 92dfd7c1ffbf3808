"""What is taught and asked: invented facts of a household, everyday questions, answers in a style."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[2] / "tests" / "data"


@dataclass(frozen=True)
class Fact:
    """Something only this household knows.

    Attributes:
        ask: the question it is taught with.
        answer: the right answer.
        wrong: an answer of the same form that is not true.
        must_contain: what an answer must say to be right.
        unseen: the same question as other people ask it; never used to teach.
    """

    ask: str
    answer: str
    wrong: str
    must_contain: tuple[str, ...]
    unseen: tuple[str, ...]

    def known(self, answer: str) -> bool:
        """Whether an answer says it."""
        return all(word.casefold() in answer.casefold() for word in self.must_contain)


@dataclass(frozen=True)
class StyleData:
    """Questions answered in a style, and others to see whether the style is kept.

    Attributes:
        taught: question and answer in the style.
        measures: questions to judge by whose answer is a measure.
        others: questions to judge by that ask for anything else.
    """

    taught: tuple[tuple[str, str], ...]
    measures: tuple[str, ...]
    others: tuple[str, ...]


def load_facts() -> tuple[Fact, ...]:
    """Sixty facts, each with five wordings that are not used to teach."""
    return tuple(
        Fact(row["ask"], row["answer"], row["wrong"], tuple(row["must_contain"]), tuple(row["unseen"]))
        for row in _household()["facts"]
    )


def load_everyday(without: Sequence[str] = ()) -> list[str]:
    """Questions that anybody asks; none is about a fact, a probe or rehearsed by the trainer."""
    left_out = {question.casefold() for question in without}
    return [question for question in _household()["everyday"] if question.casefold() not in left_out]


def load_style() -> StyleData:
    """Forty-eight taught answers, thirty-six questions to judge by."""
    data = json.loads((DATA / "style.json").read_text(encoding="utf-8"))
    taught = tuple((row["ask"], row["answer"]) for row in data["taught"])
    return StyleData(taught, tuple(data["judged"]["measures"]), tuple(data["judged"]["others"]))


def _household() -> dict[str, Any]:
    return dict(json.loads((DATA / "household.json").read_text(encoding="utf-8")))
