"""From logits to a token: penalties, bias, grammar, temperature, top-k, min-p, top-p, seed."""

from __future__ import annotations

from collections.abc import Sequence
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
        min_p: keep tokens at least this fraction as likely as the likeliest, after temperature; 0 for all.
        repetition_penalty: divides the logit of every token in prompt and answer, or multiplies it where
            it is negative (Keskar et al. 2019, CTRL); 1 for none.
        logit_bias: (token id, what is added to its logit).
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()


class Sampler:
    """The sampling state of one answer."""

    def __init__(self, params: SamplingParams, prompt: Sequence[int] = ()) -> None:
        """Start an answer to `prompt`, whose tokens the repetition penalty counts too."""
        self._params = params
        self._prompt = np.asarray(prompt if params.repetition_penalty != 1 else (), np.int64)
        self._random = np.random.default_rng(params.seed)
        self._counts: NDArray[np.int32] | None = None  # [vocab] occurrences in the answer
        self._seen: NDArray[np.bool_] | None = None  # [vocab] whether it is in prompt or answer
        self._bias_ids = np.array([ident for ident, _ in params.logit_bias], np.int64)
        self._bias = np.array([bias for _, bias in params.logit_bias], np.float32)

    def sample(self, logits: NDArray[np.float32], allowed: NDArray[np.bool_] | None = None) -> int:
        """Choose a token.

        Args:
            logits: [vocab]; changed in place.
            allowed: [vocab] which tokens may be chosen, at least one; None for all.
        """
        self._adjust(logits)
        if allowed is not None:
            logits[~allowed] = -np.inf
        token = int(logits.argmax()) if self._params.temperature == 0 else self._draw(logits)
        if self._counts is not None:
            self._counts[token] += 1
        if self._seen is not None:
            self._seen[token] = True
        return token

    def _adjust(self, logits: NDArray[np.float32]) -> None:
        """Penalties and bias, in place."""
        params = self._params
        if params.repetition_penalty != 1:
            if self._seen is None:
                self._seen = np.zeros(len(logits), np.bool_)
                self._seen[self._prompt] = True
            ids = np.flatnonzero(self._seen)
            seen = logits[ids]
            logits[ids] = np.where(
                seen > 0, seen / params.repetition_penalty, seen * params.repetition_penalty
            )
        if params.presence_penalty != 0 or params.frequency_penalty != 0:
            if self._counts is None:
                self._counts = np.zeros(len(logits), np.int32)
            ids = np.flatnonzero(self._counts)
            logits[ids] -= params.presence_penalty + params.frequency_penalty * self._counts[ids]
        logits[self._bias_ids] += self._bias

    def _draw(self, logits: NDArray[np.float32]) -> int:
        params = self._params
        ids: NDArray[np.int64] | None = None
        if 0 < params.top_k < len(logits):
            ids = np.argpartition(logits, -params.top_k)[-params.top_k :]
            logits = logits[ids]
        # Subtract before dividing: a tiny temperature must not overflow.
        weights = np.exp((logits - logits.max()).astype(np.float64) / params.temperature)
        if params.min_p > 0:  # the likeliest weighs 1 here
            kept = np.flatnonzero(weights >= params.min_p)
            ids = kept if ids is None else ids[kept]
            weights = weights[kept]
        weights /= weights.sum()
        if params.top_p < 1:
            kept = _nucleus(weights, params.top_p)
            ids = kept if ids is None else ids[kept]
            weights = weights[kept] / weights[kept].sum()
        # Searching the running sum draws from the distribution with one uniform number.
        cumulative = weights.cumsum()
        place = int(np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right"))
        # The product may round up to the whole sum, and tokens after the last likely one weigh nothing.
        place = min(place, int(np.searchsorted(cumulative, cumulative[-1])))
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
