"""From logits to a token: penalties, temperature, top-k, top-p, seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUCLEUS = 1024  # likeliest tokens sorted first when looking for the nucleus; nearly always enough


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens.

    Attributes:
        temperature: 0 is greedy.
        top_p: keep the smallest set of likeliest tokens with at least this mass.
        top_k: keep this many likeliest tokens; 0 for all.
        presence_penalty: subtracted from the logit of every token already in the answer.
        frequency_penalty: subtracted once per occurrence in the answer.
        seed: same seed, same text; None draws one.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None


class Sampler:
    """The sampling state of one answer."""

    def __init__(self, params: SamplingParams) -> None:
        self._params = params
        self._random = np.random.default_rng(params.seed)
        self._counts: dict[int, int] = {}

    def sample(self, logits: NDArray[np.float32]) -> int:
        """Choose a token from [vocab] logits, which are changed in place."""
        params = self._params
        penalised = params.presence_penalty != 0 or params.frequency_penalty != 0
        if penalised and self._counts:
            ids = np.fromiter(self._counts.keys(), np.int64)
            counts = np.fromiter(self._counts.values(), np.float32)
            logits[ids] -= params.presence_penalty + params.frequency_penalty * counts
        token = int(logits.argmax()) if params.temperature == 0 else self._draw(logits)
        if penalised:
            self._counts[token] = self._counts.get(token, 0) + 1
        return token

    def _draw(self, logits: NDArray[np.float32]) -> int:
        params = self._params
        ids: NDArray[np.int64] | None = None
        if 0 < params.top_k < len(logits):
            ids = np.argpartition(logits, -params.top_k)[-params.top_k :]
            logits = logits[ids]
        # Subtract before dividing: a tiny temperature must not overflow.
        weights = np.exp((logits - logits.max()).astype(np.float64) / params.temperature)
        weights /= weights.sum()
        if params.top_p < 1:
            kept = _nucleus(weights, params.top_p)
            ids = kept if ids is None else ids[kept]
            weights = weights[kept] / weights[kept].sum()
        # Searching the running sum draws from the distribution with one uniform number.
        cumulative = weights.cumsum()
        place = int(np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right"))
        place = min(place, len(weights) - 1)
        return place if ids is None else int(ids[place])


def _nucleus(weights: NDArray[np.float64], top_p: float) -> NDArray[np.int64]:
    """Indices of the smallest set of likeliest tokens whose mass reaches `top_p`."""
    if len(weights) > NUCLEUS:
        top = np.argpartition(weights, -NUCLEUS)[-NUCLEUS:]
        if weights[top].sum() < top_p:
            top = np.arange(len(weights))
    else:
        top = np.arange(len(weights))
    top = top[np.argsort(-weights[top], kind="stable")]
    mass = weights[top].cumsum()
    return top[: int(np.searchsorted(mass, top_p)) + 1]
