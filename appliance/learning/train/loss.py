"""The terms of the training loss, as factors of what a backend computes at each answer position.

The loss of a step is, summed over positions,

    - weight * logp + push * relu(logp - floor) + keep * KL(reference || ours)

with `logp` the log probability of the position's token. Each backend computes just that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from appliance.learning.train.plan import Visit

FIRST_TOKENS = 4
REJECTED_MARGIN = 1.0  # nats a token that a rejected answer shall lose

Vector = npt.NDArray[np.float32]
Reference = npt.NDArray[np.float32]
"""Of a visit that keeps: last hidden states [answer, width]. Of one that pushes: log probabilities of
the rejected tokens from there on, [answer - push]."""


@dataclass(frozen=True, eq=False)
class Terms:
    """Factors at the answer positions of a step, visit after visit.

    Attributes:
        weight: [answers] of the negative log probability.
        push: [answers] of how far the log probability is above the floor.
        floor: [answers] log probability that a rejected token shall fall to, and no further: that would
            only damage the language around it.
        kept: [kept] which of the positions stay near the reference.
        reference: [kept, width] last hidden states of the reference model there.
        keep: [kept] of the divergence from it.
    """

    weight: Vector
    push: Vector
    floor: Vector
    kept: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    reference: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    keep: Vector = field(default_factory=lambda: np.zeros(0, np.float32))


def step_terms(
    step: Sequence[Visit],
    references: Mapping[Visit, Reference],
    *,
    unit: float,
    drift_weight: float,
    rejected_weight: float,
) -> Terms:
    """The factors of a step.

    Args:
        step: its visits.
        references: of those that keep or push.
        unit: the weight that counts one.
        drift_weight: of the mean divergence over the kept answers.
        rejected_weight: of the mean excess of a rejected answer.
    """
    count = sum(visit.tokens.answer for visit in step)
    weight, push, floor = (np.zeros(count, np.float32) for _ in range(3))
    kept: list[npt.NDArray[np.int64]] = []
    near: list[Reference] = []
    held: list[Vector] = []
    end = 0
    for visit in step:
        start, end = end, end + visit.tokens.answer
        if visit.push is not None:
            at = start + visit.push
            push[at:end] = rejected_weight * visit.weight / unit / (end - at)
            floor[at:end] = references[visit] - REJECTED_MARGIN
            continue
        weight[start:end] = visit.weight / unit / visit.tokens.answer
        if visit.keep:
            kept.append(np.arange(start, end))
            near.append(references[visit])
            held.append(_held(visit))
    if not kept:
        return Terms(weight, push, floor)
    keep = np.float32(drift_weight / len(held)) * np.concatenate(held)
    return Terms(weight, push, floor, np.concatenate(kept), np.concatenate(near), keep)


def _held(visit: Visit) -> Vector:
    """How much each position of an answer counts in staying near; they add up to one.

    Half of it goes to the first tokens after a question: there it is decided whether a general
    question gets a general answer, or what was taught.
    """
    count = visit.tokens.answer
    if visit.tokens.start <= 1:  # prose
        return np.full(count, 1 / count, np.float32)
    first = min(FIRST_TOKENS, count)
    out = np.full(count, 0.5 / count, np.float32)
    out[:first] += 0.5 / first
    return out
