"""What becomes of a batch that is beyond its time: one costly example must not take everybody's along.

An example that takes several times as much as the others, and a good part of the whole, is parked for the
owner to look at. When there is none and the batch took too long twice, it is just too much: its older half is
tried alone, and the rest waits for the run after.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from appliance.store.examples import Example
from appliance.store.normalise import message_text

LEAST_VISITS = 8.0  # as in `train/training.py`
PASSES = 5.0
LONGEST = 4096
"""Characters beyond which a conversation is cut off in training, about."""
TIMES = 4.0
SHARE = 0.2


def cost(example: Example) -> float:
    """How long it takes to learn, in no unit: how often it is gone through, times its length."""
    length = len(example.target or "") + sum(len(message_text(message)) for message in example.messages)
    visits = 1.0 if example.kind in ("automatic", "praise") else max(LEAST_VISITS, example.weight * PASSES)
    return visits * min(length + 1, LONGEST)


def lighten(held: Sequence[Example]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(what to park, what to try again) of a batch that took too long; nothing to park, and all, of one."""
    ids = tuple(example.id for example in held)
    costs = [cost(example) for example in held]
    if len(held) < 2:
        return (), ids
    usual = statistics.median_low(costs)
    heavy = tuple(ident for ident, each in zip(ids, costs, strict=True) if each > TIMES * usual)
    taken = sum(each for each in costs if each > TIMES * usual)
    if heavy and taken >= SHARE * sum(costs):
        return heavy, tuple(ident for ident in ids if ident not in heavy)
    return (), ids[: (len(ids) + 1) // 2]
