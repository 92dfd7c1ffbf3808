"""Whether answers are answers at all: a model can keep its perplexity and yet only loop or refuse.

All of it is told from the text alone, and as shares over many questions: one odd answer is nothing.
Shares are compared with those of the model before, since another base model may refuse more, or run
on longer, from the start.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

from appliance.learning.report import Check, percent
from appliance.sections import GateConfig

OPENING = 6
"""Answers that begin with the same so many words are the same: the rest is what fits behind them."""

DIVERSITY = 0.35
"""Of all words of an answer of some length, at least this share are different ones."""

_TOKEN = re.compile(r"\w+|[^\w\s]")
_CHARACTERS = re.compile(r"(.{1,12}?)\1{5,}", re.DOTALL)
_REFUSAL = re.compile(
    r"^\W*(i'm|i am) (very |really |so )?(sorry|afraid|unable|not able|not allowed)\b"
    r"|^\W*(sorry|unfortunately)\b"
    r"|\bi (cannot|can't|can not|could not|couldn't|won't|will not|do not|don't) "
    r"(help|answer|assist|know|have|provide|discuss|fulfill|comply|do that|tell)\b"
    r"|\bas an ai\b|\bunable to (help|answer|assist|provide|comply)\b",
)


def looping(answer: str) -> bool:
    """Whether the answer says the same over and over."""
    if _CHARACTERS.search(answer):
        return True
    tokens = _TOKEN.findall(answer.casefold())
    if len(tokens) >= 12 and len(set(tokens)) < DIVERSITY * len(tokens):
        return True
    for period in range(1, len(tokens) // 2 + 1):
        run = longest = 0
        for at in range(period, len(tokens)):
            run = run + 1 if tokens[at] == tokens[at - period] else 0
            longest = max(longest, run)
        # `longest` tokens repeat those before them. Short phrases must come three times; a whole
        # sentence said twice is a loop when there is little else.
        if longest >= max(2 * period, 4) or (period >= 5 and longest >= period and longest > len(tokens) / 3):
            return True
    return False


def refusing(answer: str) -> bool:
    """Whether the answer declines to be one. English only; in other languages `sameness` notices."""
    return bool(_REFUSAL.search(answer.casefold().replace("\u2019", "'")[:120]))


def sameness(answers: Sequence[str]) -> float:
    """Share of the answers that begin like the one most often given; they are to different questions."""
    openings = [" ".join(_TOKEN.findall(answer.casefold())[:OPENING]) for answer in answers]
    most = max(Counter(openings).values(), default=0)
    return most / len(answers) if most > 1 else 0.0


def mean_length(answers: Sequence[str]) -> float:
    """Mean number of words."""
    return sum(len(answer.split()) for answer in answers) / max(len(answers), 1)


def sanity_checks(
    before: Sequence[str],
    after: Sequence[str],
    lengths: tuple[float, float],
    limits: GateConfig,
) -> list[Check]:
    """The checks on answers to questions that have nothing to do with each other.

    Args:
        before: of the model before.
        after: of the candidate, to the same questions.
        lengths: mean length of general answers, before and after. What was taught has the length it has.
        limits: what is allowed.
    """
    same = sameness(before), sameness(after)
    then, now = lengths
    shorter = now < then
    return [
        _share_check(
            "empty", "Empty answers", "say nothing", *_shares(_empty, before, after), limits.max_empty
        ),
        _share_check(
            "loops",
            "Answers that loop",
            "repeat themselves",
            *_shares(looping, before, after),
            limits.max_looping,
        ),
        _share_check(
            "refusals",
            "Refusals",
            "decline to answer",
            *_shares(refusing, before, after),
            limits.max_refusals,
        ),
        _share_check("sameness", "Different answers", "are one and the same", *same, limits.max_same),
        Check(
            "length",
            "Length of answers",
            not then or limits.min_length * then <= now <= limits.max_length * then,
            f"General answers have {now:.1f} words on average against {then:.1f} "
            f"(allowed are {limits.min_length:g} to {limits.max_length:g} times as many).",
            now,
            then,
            then * (limits.min_length if shorter else limits.max_length) if then else None,
            "least" if shorter else "most",
        ),
    ]


def _empty(answer: str) -> bool:
    return not _TOKEN.search(answer)


def _shares(test: Callable[[str], bool], before: Sequence[str], after: Sequence[str]) -> tuple[float, float]:
    then, now = (sum(map(test, answers)) / max(len(answers), 1) for answers in (before, after))
    return then, now


def _share_check(name: str, title: str, what: str, before: float, after: float, rise: float) -> Check:
    limit = before + rise
    now, then, most = percent(after, before, limit)
    return Check(
        name,
        title,
        after <= limit,
        f"{now} of the answers {what}, {then} before (at most {most}).",
        after,
        before,
        limit,
    )
