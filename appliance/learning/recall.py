"""Whether an answer says what was taught, and how much of that may be missing.

A taught answer is recognised by its *key words*: what it says that neither the question nor the
rejected answer said. Other words around them are style, and the model may choose them as it likes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from appliance.learning.report import Check
from appliance.learning.sanity import looping

WORDS_SHARE = 2 / 3
"""Of the key words that are not numbers: a long target is seldom repeated to the letter, and one word
of two is not the answer. Numbers must all be there: a wrong digit makes another fact."""

SIGNIFICANCE = 0.05

# A number keeps what is inside it (7:35, 555-0142). Scripts without spaces count by character.
_WORD = re.compile(r"\d+(?:[.,:/-]\d+)+|[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")
# Without words that turn a sentence round: "not" can be all that a correction adds.
_STOP = frozenset(
    re.findall(
        r"\w+",
        "a about all also am an and any are as at be been but by can did do does for from had has have he "
        "her him his how i if in into is it its just me my of on or our out she so some than that the their "
        "then there these they this those to too up us very was we were what when where which who why will "
        "with would you your them s re ve ll d m",
    )
)


def key_words(target: str, question: str, rejected: str | None) -> frozenset[str]:
    """What an answer must contain to count as `target`.

    A correction may add no more than a small word ("off"), or consist of words that were there already
    ("John", not "John Smith"); then those which the question does not give away must do, and if it gives
    all of them away, all.
    """
    said = frozenset(_words(target))
    asked, wrong = _words(question), _words(rejected or "")
    new = said - asked - wrong
    return new - _STOP or new or said - _STOP - asked or said - _STOP or said


def says(answer: str, keys: frozenset[str]) -> bool:
    """Whether the answer contains the key words. One that drowns them in repetition does not count."""
    there = _words(answer)
    numbers = {word for word in keys if any(letter.isdigit() for letter in word)}
    words = keys - numbers
    enough = len(words & there) >= WORDS_SHARE * len(words)
    return bool(keys) and numbers <= there and enough and not looping(answer)


def recall_check(before: Sequence[bool], after: Sequence[bool], least: float) -> Check:
    """What the batch taught is what the model now answers.

    Args:
        before: by correction, whether the adapter in service answers it.
        after: whether the candidate does.
        least: share that must be; of so few corrections that no whole number meets it, the nearest.
    """
    count, now, then = len(after), sum(after), sum(before)
    needed = math.floor(least * count + 0.5)
    return Check(
        "recall",
        "Corrections recalled",
        now >= needed,
        f"{now} of {count} corrected questions get the taught answer, {then} before (at least {needed}).",
        now / count,
        then / count,
        needed / count,
        "least",
    )


def earlier_check(before: Sequence[bool], after: Sequence[bool], share: float) -> Check:
    """What earlier batches taught is not lost.

    Only a sample of it is asked, so the question is whether the share lost of all of it is above the
    limit. It fails when so many losses would come about in less than one case of twenty if the true
    share were `share`: an exact one-sided binomial test, which a sample of two suits as well as one of
    sixteen. McNemar's test is not used: it would set what was gained against what was lost, and could
    not fail a candidate that loses four facts of four (p = 0.06). A single loss passes by default; it
    may be a near tie.

    Args:
        before: by earlier correction, whether the adapter in service answers it.
        after: whether the candidate does.
        share: that may be lost.
    """
    known = sum(before)
    lost = sum(was and not now for was, now in zip(before, after, strict=True))
    allowed = most_lost(known, share)
    text = f"{known - lost} of {known} earlier corrections that were answered still are"
    return Check(
        "earlier",
        "Earlier corrections",
        lost <= allowed,
        f"{text}: {lost} lost (at most {allowed}; so many of {known} may be chance when {share:.0%} may go)."
        if known
        else "None of those repeated was answered before.",
        lost,
        0,
        allowed,
    )


def most_lost(known: int, share: float) -> int:
    """The largest number of losses among `known` that a true share of `share` still explains."""
    chances = [math.comb(known, k) * share**k * (1 - share) ** (known - k) for k in range(known + 1)]
    return max(lost for lost in range(known + 1) if math.fsum(chances[lost:]) >= SIGNIFICANCE)


def _words(text: str) -> set[str]:
    plain = _THOUSANDS.sub("", text.casefold().replace("\u2019", "'"))
    return {word[:-1] if len(word) > 3 and word[-1] == "s" else word for word in _WORD.findall(plain)}
