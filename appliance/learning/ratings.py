"""Whether people like an adapter's answers less than those of the one before: exact tests on few votes.

Two questions, for people rate in two ways. Of the answers that were *rated*, is a larger share
rejected? And of *all* answers, do more draw a complaint? The first misses that people who never
praise have become unhappy; the second would take a session of teaching for unhappiness. So only
what does not say the right answer is a complaint, and only where complaints outnumber praise.

Where several devices ask, it takes more than one to bring an adapter down: of what one device rejects no more
counts than all others reject together, however often it presses the thumb. The owner's word always counts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from appliance.learning.critique import stated_answer
from appliance.store.ratings import Vote

LEAST = 3
"""Fewer rejections than this are an accident, however the numbers before look."""

USUAL = (1, 10)
"""Complaints and answers added to those before: without any history one complaint in ten answers is taken
to be usual, so that a first adapter is held to something."""


@dataclass(frozen=True)
class Ratings:
    """What people said of the answers of one adapter; each answer counts once.

    Attributes:
        answers: all that were given.
        praised: they were good.
        taught: a person said what the answer should have been.
        complained: they were rejected without that.
    """

    answers: int = 0
    praised: int = 0
    taught: int = 0
    complained: int = 0

    @property
    def rejected(self) -> int:
        """All that were not good."""
        return self.taught + self.complained

    @property
    def rated(self) -> int:
        """All that a person said something about."""
        return self.praised + self.rejected


def balanced(votes: Iterable[Vote]) -> list[Vote]:
    """The votes, without the rejections by which one device outdoes all others together; oldest go first."""
    kept = list(votes)
    said_no = [vote for vote in kept if vote.kind != "praise"]
    counts = Counter(vote.giver for vote in said_no if vote.giver is not None)
    if not counts:
        return kept
    loudest, count = counts.most_common(1)[0]
    allowed = len(said_no) - count
    theirs = [vote for vote in said_no if vote.giver == loudest]
    dropped = {id(vote) for vote in theirs[: max(count - allowed, 0)]}
    return [vote for vote in kept if id(vote) not in dropped]


def count_votes(answers: int, votes: Iterable[Vote]) -> Ratings:
    """The sums. A note that gives the answer ("Should be 4") teaches as much as a correction."""
    kinds = Counter(
        "praised"
        if vote.kind == "praise"
        else "taught"
        if vote.kind == "correction" or stated_answer(vote.note or "")
        else "complained"
        for vote in votes
    )
    return Ratings(answers, **kinds)


def find_worse(now: Ratings, before: Ratings, chance: float) -> str | None:
    """Why `now` is worse than `before`, for a person; None when chance explains the difference.

    Args:
        now: of the adapter that is judged.
        before: of what it replaced.
        chance: how often an adapter that is as good as the one before may be taken for worse.
    """
    if now.rejected >= LEAST:
        p = at_least(now.rejected, now.rated, before.rejected, before.rated)
        if p < chance:
            return (
                f"{now.rejected} of {now.rated} rated answers were rejected, {before.rejected} of "
                f"{before.rated} before (by chance once in {_once(p)})."
            )
    if now.complained >= LEAST and now.complained > now.praised:
        usual, of = USUAL
        p = at_least(now.complained, now.answers, before.complained + usual, before.answers + of)
        if p < chance:
            return (
                f"{now.complained} of {now.answers} answers drew a complaint, {before.complained} of "
                f"{before.answers} before (by chance once in {_once(p)})."
            )
    return None


def at_least(bad: int, n: int, bad_before: int, n_before: int) -> float:
    """Fisher's exact test, one-sided: how probable so many bad ones among `n` are, were both alike.

    Exact for any numbers, so that it needs no smallest sample: three of three tell something when
    thirty of thirty were good before.
    """
    all_bad, total = bad + bad_before, n + n_before
    ways = sum(
        math.comb(all_bad, k) * math.comb(total - all_bad, n - k) for k in range(bad, min(n, all_bad) + 1)
    )
    return ways / math.comb(total, n)


def _once(p: float) -> str:
    return f"{round(1 / p):,}" if p > 1e-6 else "a million or more"
