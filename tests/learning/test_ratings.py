"""What few votes say: a handful in a row is enough, one is not, and teaching is no complaint."""

from __future__ import annotations

import itertools
import random

import pytest

from appliance.home import Home
from appliance.learning.ratings import Ratings, at_least, count_votes, find_worse
from appliance.store import Store
from appliance.store.ratings import Vote

from .box import answered, rate

CHANCE = 0.003


@pytest.mark.parametrize(
    ("bad", "n", "bad_before", "n_before", "probability"),
    [
        # Fisher's tea: all four cups of eight, and three of the four.
        (4, 4, 0, 4, 1 / 70),
        (3, 4, 1, 4, 17 / 70),
        (1, 1, 0, 999, 1 / 1000),
        (0, 5, 3, 5, 1.0),
        (0, 0, 0, 0, 1.0),
        (5, 5, 5, 5, 1.0),
    ],
)
def test_fishers_exact_test(bad: int, n: int, bad_before: int, n_before: int, probability: float) -> None:
    assert at_least(bad, n, bad_before, n_before) == pytest.approx(probability)


def test_fishers_test_is_the_share_of_all_ways_to_deal() -> None:
    """Counted out: of all ways to deal six answers, two of them bad, to four and two."""
    hands = list(itertools.combinations(range(6), 4))
    for bad in range(3):
        worse = sum(sum(card < 2 for card in hand) >= bad for hand in hands)
        assert at_least(bad, 4, 2 - bad, 2) == pytest.approx(worse / len(hands))


@pytest.mark.parametrize(
    ("now", "before", "worse"),
    [
        # (answers, praised, taught, complained); without any history.
        ((1, 0, 0, 1), (0, 0, 0, 0), False),
        ((3, 0, 0, 3), (0, 0, 0, 0), False),
        ((5, 0, 0, 5), (0, 0, 0, 0), True),
        ((9, 4, 0, 5), (0, 0, 0, 0), False),
        # Among many good ones before: one and two are accidents, three in a row are not.
        ((1, 0, 0, 1), (1000, 0, 0, 2), False),
        ((2, 0, 0, 2), (1000, 0, 0, 2), False),
        ((3, 0, 0, 3), (1000, 0, 0, 2), True),
        ((300, 0, 0, 3), (1000, 0, 0, 10), False),
        # The owner teaches ten things in a row, as ever.
        ((10, 0, 10, 0), (300, 0, 60, 0), False),
        ((10, 0, 10, 0), (0, 0, 0, 0), False),
        # Somebody rates a whole session, which nobody did before.
        ((20, 14, 0, 6), (1000, 0, 0, 2), False),
        # Where answers are praised, corrections tell as much as complaints.
        ((40, 20, 20, 0), (50, 45, 5, 0), True),
        ((40, 20, 10, 10), (50, 45, 0, 5), True),
        ((40, 34, 3, 3), (50, 45, 5, 0), False),
        # As bad as before, and better.
        ((20, 5, 0, 10), (40, 10, 0, 20), False),
        ((20, 10, 0, 0), (40, 10, 0, 20), False),
    ],
)
def test_worse(now: tuple[int, ...], before: tuple[int, ...], worse: bool) -> None:
    found = find_worse(Ratings(*now), Ratings(*before), CHANCE)
    assert (found is not None) is worse, found


def test_an_adapter_as_good_as_the_one_before_seldom_falls() -> None:
    """Looked at after each of two hundred answers, a tenth of which people complain about, before and now."""
    chosen = random.Random(0)
    trials, fallen = 200, 0
    for _ in range(trials):
        before = Ratings(300, 30, 0, sum(chosen.random() < 0.1 for _ in range(300)))
        praised = complained = 0
        for answers in range(1, 201):
            luck = chosen.random()
            praised += 0.1 <= luck < 0.2
            complained += luck < 0.1
            now = Ratings(answers, praised, 0, complained)
            if luck < 0.1 and find_worse(now, before, CHANCE):
                fallen += 1
                break
    assert fallen / trials <= 0.05


def test_a_note_that_says_the_answer_teaches() -> None:
    votes = [
        Vote("praise", None),
        Vote("correction", None),
        Vote("critique", "Wrong answer! Should be 4"),
        Vote("critique", "Nonsense."),
        Vote("critique", None),
    ]
    assert count_votes(9, votes) == Ratings(9, praised=1, taught=2, complained=2)


def test_votes_belong_to_the_adapter_that_answered(home: Home) -> None:
    store = Store.open(home)
    old = [answered(store, f"q{number}", f"a{number}", "old", at=100.0) for number in range(3)]
    new = [answered(store, f"q{number}", f"b{number}", "new", at=200.0) for number in range(3)]
    base = answered(store, "q", "a", None, at=50.0)
    # Given late, and on the same questions, a word on an old answer stays one on the old adapter.
    rate(store, old[0], "down")
    rate(store, new[0], "down")
    rate(store, new[1], "down")
    rate(store, new[1], "up")  # changed their mind: the last word counts
    rate(store, base, "up")
    ratings = store.ratings
    assert [vote.kind for vote in ratings.votes("old")] == ["critique"]
    assert sorted(vote.kind for vote in ratings.votes("new")) == ["critique", "praise"]
    assert [vote.kind for vote in ratings.votes(None)] == ["praise"]
    assert (ratings.answers("old"), ratings.answers("new"), ratings.answers(None)) == (3, 3, 1)
    # A file put in place of another under its name is judged by its own answers.
    assert (ratings.answers("new", since=201.0), ratings.votes("new", since=201.0)) == (0, [])
    assert (ratings.answers("new", before=200.0), ratings.votes("new", before=200.0)) == (0, [])
    store.close()
