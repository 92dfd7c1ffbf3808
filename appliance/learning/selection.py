"""Which of the examples a run holds are worth training on; every other one has a reason.

What people taught is left out only for a newer word on the same question, or for saying the same
again. The model's own answers are cheap, and only keep the model as it is: one of many alike is
enough, one that loops is worse than none, and one device's chatter should not stand for everybody.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from rapidfuzz import fuzz, process

from appliance.learning.batch import TAUGHT, trainable
from appliance.store.examples import REVIEWED, Example
from appliance.store.normalise import context_key, message_text, normalise

Reason = Literal["empty", "loop", "contradicted", "duplicate", "near-duplicate", "device"]

_WORDS: dict[str, tuple[str, str]] = {
    "duplicate": ("duplicate", "duplicates"),
    "near-duplicate": ("near-duplicate", "near-duplicates"),
    "contradicted": ("contradicted by a correction", "contradicted by a correction"),
    "loop": ("loop", "loops"),
    "empty": ("empty", "empty"),
    "device": ("over its device's share", "over their device's share"),
}

# A loop is the same few words at least five times in a row, for half of the text. Lists whose lines
# are alike but for a word are none.
LOOP_TIMES = 5
LOOP_SHARE = 0.5
LOOP_UNITS = 10  # "ha ha ha ha ha" is a laugh
LONG_UNIT = 40  # a longer unit is text of a script without spaces, or a loop without them

QUERY_CHARS = 1000  # a longer question is mostly a document, and only counts as equal when it is
TARGET_CHARS = 300  # more than what is trained of the model's own answers
CANDIDATES = 50  # as many are compared letter by letter
LOOSE_SCORE = 50  # of words in common, before letters are compared: a typing mistake costs a whole word
ROWS = 64  # compared in one call, so that the threads that serve get their turn in between

DEVICE_FLOOR = 20
"""Automatic examples that a device may always give: so few drown nobody."""


@dataclass(frozen=True)
class Selection:
    """What a run trains on, and what it leaves out.

    Attributes:
        kept: oldest first; of merged repeats it is the newest, with the largest weight.
        left_out: the reason for every other example, by id.
    """

    kept: tuple[Example, ...]
    left_out: Mapping[str, Reason]

    @property
    def counts(self) -> dict[str, int]:
        """How many were left out, by reason; the most frequent first."""
        return dict(Counter(self.left_out.values()).most_common())


def select(
    examples: Sequence[Example],
    *,
    near_duplicate: float,
    device_share: float,
    teachers: Collection[str] = (),
) -> Selection:
    """Choose among the examples a run holds.

    Args:
        examples: oldest first.
        near_duplicate: automatic examples count once when question and answer are both at least
            this alike, 0 to 1; at 1 only equal ones do.
        device_share: part of the automatic examples that one of several devices may give.
        teachers: devices whose word counts for all, as the owner's does; that of another one counts for what
            it said itself.
    """
    kept, left_out = list(examples), dict[str, Reason]()

    def leave_out(found: Mapping[str, Reason]) -> None:
        left_out.update(found)
        kept[:] = [example for example in kept if example.id not in found]

    leave_out({one.id: "empty" for one in kept if not trainable(one) or _blank(one.target or "")})
    leave_out({one.id: "loop" for one in kept if one.kind == "automatic" and is_loop(one.target or "")})
    leave_out(_contradicted(kept, teachers))
    leave_out(dict.fromkeys(_rejected_elsewhere(kept, near_duplicate * 100, teachers), "contradicted"))
    repeats, weights = _duplicates(kept)
    leave_out(repeats)
    if near_duplicate < 1:
        own = [example for example in kept if example.kind == "automatic"]
        leave_out(dict.fromkeys(_near_duplicates(own, near_duplicate * 100), "near-duplicate"))
    leave_out(dict.fromkeys(_over_share(kept, device_share), "device"))
    merged = (replace(example, weight=weights.get(example.id, example.weight)) for example in kept)
    return Selection(tuple(merged), left_out)


def describe(counts: Mapping[str, int]) -> str:
    """`counts` of a selection for a person: "12: 9 duplicates, 3 loops"; empty when there are none."""
    if not counts:
        return ""
    parts = (f"{count} {_WORDS[name][count != 1]}" for name, count in counts.items())
    return f"{sum(counts.values())}: {', '.join(parts)}"


# -- outputs not worth learning ---------------------------------------------------------------


def is_loop(text: str) -> bool:
    """Whether a text says the same over and over: one line again and again, or a few words."""
    lines = [normalise(line) for line in text.splitlines() if line.strip()]
    if len(lines) >= 3 and len(set(lines)) == 1:
        return True
    units: list[str] = []
    for token in re.findall(r"\w+|[^\w\s]", text.casefold()):
        units.extend([token] if len(token) <= LONG_UNIT else token)
    # Most texts have too many pairs of neighbours for a loop, and need no closer look.
    pairs = len(set(itertools.pairwise(units)))
    if pairs > (1 - LOOP_SHARE * (1 - 1 / LOOP_TIMES)) * len(units) + 2:
        return False
    codes: dict[str, int] = {}
    coded = np.array([codes.setdefault(unit, len(codes)) for unit in units])
    return any(
        _stretch(coded, period) >= max(LOOP_TIMES * period, LOOP_SHARE * len(units), LOOP_UNITS)
        for period in range(1, len(units) // LOOP_TIMES + 1)
    )


def _stretch(coded: NDArray[np.int_], period: int) -> int:
    """How many units in a row repeat with this period, at most."""
    breaks = np.flatnonzero(coded[period:] != coded[:-period])
    edges = np.concatenate(([-1], breaks, [len(coded) - period]))
    return int(np.diff(edges).max()) - 1 + period


def _blank(text: str) -> bool:
    # White space, and characters that nobody sees (zero-width, control).
    return all(unicodedata.category(character)[0] in "ZC" for character in text)


# -- what people said since -------------------------------------------------------------------


ALL = ""
"""Reach of a word that counts for everybody."""


def _reach(example: Example, teachers: Collection[str]) -> str:
    """The device for whose examples its word counts, or `ALL`."""
    giver = example.giver
    return ALL if giver is None or giver in teachers or example.note == REVIEWED else giver


def _contradicted(examples: Sequence[Example], teachers: Collection[str]) -> dict[str, Reason]:
    """What disagrees with the newest correction of its question in the same conversation.

    A drafted target stands back behind any correction. Praise stays when it is newer: a person said
    it knowing the correction. A device's praise does not outweigh a word for all.
    """
    newest: dict[tuple[str, str, str], int] = {}
    keys = [(normalise(example.query), context_key(example.messages)) for example in examples]
    for at, (key, example) in enumerate(zip(keys, examples, strict=True)):
        known = newest.get((*key, _reach(example, teachers)))
        if example.kind == "correction" or (
            example.kind == "critique" and (known is None or examples[known].kind == "critique")
        ):
            newest[*key, _reach(example, teachers)] = at
    found: dict[str, Reason] = {}
    for at, (key, example) in enumerate(zip(keys, examples, strict=True)):
        own, others = newest.get((*key, example.giver or ALL)), newest.get((*key, ALL))
        # A word for all goes before a device's own, whichever is newer.
        winner = others if others is not None else own if own is not None else at
        agrees = normalise(example.target or "") == normalise(examples[winner].target or "")
        outranked = winner == others and _reach(example, teachers) != ALL
        if winner == at or (example.kind == "praise" and (agrees or (at > winner and not outranked))):
            continue
        if example.kind == "automatic" and agrees:
            found[example.id] = "duplicate"
        elif not agrees:
            found[example.id] = "contradicted"
    return found


def _rejected_elsewhere(examples: Sequence[Example], score: float, teachers: Collection[str]) -> list[str]:
    """Ids of automatic examples that answer what a person rejected, to whatever question.

    The same wrong answer to the same question in other words would teach what was just corrected.
    """
    rejected = defaultdict[tuple[str, tuple[str, ...]], list[str]](list)
    for example in examples:
        if example.kind in TAUGHT:
            text = normalise(example.response)[:TARGET_CHARS]
            rejected[_reach(example, teachers), _numbers(text)].append(text)
    out = []
    for example in examples:
        if example.kind == "automatic":
            text = normalise(example.target or "")[:TARGET_CHARS]
            known = [
                *rejected.get((ALL, _numbers(text)), ()),
                *(rejected.get((example.giver, _numbers(text)), ()) if example.giver else ()),
            ]
            if process.extractOne(text, known, scorer=fuzz.ratio, score_cutoff=score) is not None:
                out.append(example.id)
    return out


def _numbers(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\d+", text))


# -- once is enough ---------------------------------------------------------------------------


def _duplicates(examples: Sequence[Example]) -> tuple[dict[str, Reason], dict[str, float]]:
    """Repeats, and the weight of those that stand for them: the largest among the repeats."""
    groups = defaultdict[Hashable, list[int]](list)
    for at, example in enumerate(examples):
        # Two corrections of different wrong answers are two: each rejects another one.
        rejected = normalise(example.response) if example.kind in TAUGHT else None
        target = normalise(example.target or "")
        groups[normalise(example.query), _conversation(example.messages), target, rejected].append(at)
    repeats: dict[str, Reason] = {}
    weights: dict[str, float] = {}
    for group in groups.values():
        # A person's word goes before the model's own answer, a correction before a draft.
        best = max(group, key=lambda at: (_rank(examples[at]), at))
        weights[examples[best].id] = max(examples[at].weight for at in group)
        repeats |= {examples[at].id: "duplicate" for at in group if at != best}
    return repeats, weights


def _rank(example: Example) -> int:
    return ("automatic", "praise", "critique", "correction").index(example.kind)


def _conversation(messages: Iterable[Mapping[str, object]]) -> tuple[tuple[str, str], ...]:
    return tuple((str(message.get("role")), normalise(message_text(message))) for message in messages)


def _near_duplicates(examples: Sequence[Example], score: float) -> list[str]:
    """Ids of examples very much like a newer one that stays.

    Compared are only examples with the same conversation before and the same numbers in them: "12
    May" is not "13 May", however alike the rest is.
    """
    groups = defaultdict[Hashable, list[tuple[str, str, str]]](list)
    for example in reversed(examples):
        query, target = normalise(example.query), normalise(example.target or "")
        if len(query) <= QUERY_CHARS:
            numbers = _numbers(f"{query} {target[:TARGET_CHARS]}")
            before = _conversation(example.messages[:-1])
            groups[before, numbers].append((example.id, query, target))
    return [id for group in groups.values() if len(group) > 1 for id in _near_in_group(group, score)]


def _near_in_group(group: Sequence[tuple[str, str, str]], score: float) -> list[str]:
    # Letters are dear to compare for thousands of pairs. So words are compared first, each coded as
    # one character, and letters only where many words are the same. Characters below 256 are what
    # the library is fastest with; that some words share one only makes texts look more alike here.
    codes: dict[str, str] = {}
    coded = [
        "".join(codes.setdefault(word, chr(len(codes) % 256)) for word in query.split())
        for _, query, _ in group
    ]
    out: set[int] = set()
    for start in range(0, len(group), ROWS):
        rows = coded[start : start + ROWS]
        earlier = coded[: start + len(rows)]
        alike = process.cdist(rows, earlier, scorer=fuzz.ratio, score_cutoff=LOOSE_SCORE, dtype=np.uint8)
        for at, row in enumerate(alike, start):
            near = np.flatnonzero(row[:at])
            near = near[np.argsort(-row[near].astype(int), kind="stable")]
            candidates = [other for other in near.tolist() if other not in out][:CANDIDATES]
            if any(_alike(group[at], group[other], score) for other in candidates):
                out.add(at)
    return [group[at][0] for at in sorted(out)]


def _alike(one: tuple[str, str, str], other: tuple[str, str, str], score: float) -> bool:
    (_, query, target), (_, other_query, other_target) = one, other
    short, long = sorted((len(target), len(other_target)))
    if 200 * short < score * (short + long):  # what such lengths can reach at best
        return False
    return bool(fuzz.ratio(query, other_query, score_cutoff=score)) and bool(
        fuzz.ratio(target[:TARGET_CHARS], other_target[:TARGET_CHARS], score_cutoff=score)
    )


# -- every device counts ----------------------------------------------------------------------


def _over_share(examples: Sequence[Example], share: float) -> list[str]:
    """Ids of the oldest automatic examples of devices that gave more than their share."""
    own = defaultdict[str | None, list[str]](list)
    for example in examples:
        if example.kind == "automatic":
            own[example.device].append(example.id)
    counts = [len(ids) for ids in own.values()]
    if len(counts) < 2:
        return []
    # Two devices cannot both stay under a third: the least that can be kept is an even split.
    share = max(share, 1 / len(counts))

    def kept(cap: int) -> float:
        return share * sum(min(count, cap) for count in counts) + 1e-9

    cap = next((cap for cap in range(max(counts), DEVICE_FLOOR, -1) if cap <= kept(cap)), DEVICE_FLOOR)
    return [id for ids in own.values() for id in ids[: max(len(ids) - cap, 0)]]
