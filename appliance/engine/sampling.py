"""From logits to a token: penalties, bias, grammar, temperature, top-k, min-p, top-p, seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_FLOORS = (1e-3, 1e-6, 0.0)  # weights looked at first, relative to the likeliest; nearly always enough
_BLOCK = 256


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
        # Relative to the likeliest, which weighs 1. Subtract before dividing: a tiny temperature must not
        # overflow, and what is as good as impossible may be 0.
        with np.errstate(over="ignore"):
            weights = np.exp((logits - logits.max()) / np.float32(params.temperature))
        ids: NDArray[np.int64] | None = None
        if 0 < params.top_k < len(weights):
            ids = _likeliest(weights, params.top_k)
        if params.min_p > 0:
            kept = np.flatnonzero((weights if ids is None else weights[ids]) >= params.min_p)
            ids = kept if ids is None else ids[kept]
        if params.top_p < 1:
            ids = _nucleus(weights, params.top_p, ids)
        place = _pick(weights if ids is None else weights[ids], self._random.random())
        return place if ids is None else int(ids[place])


def _likeliest(weights: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Ids of the `count` largest weights, in no order."""
    for floor in _FLOORS:
        near = np.flatnonzero(weights >= floor)
        if len(near) >= count:
            break
    return near[np.argpartition(weights[near], -count)[-count:]]


def _nucleus(weights: NDArray[np.float32], top_p: float, ids: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """Of `ids`, or of all, the smallest set of likeliest tokens whose mass reaches `top_p`."""
    if ids is not None:
        near, mass = ids, float(weights[ids].sum(dtype=np.float64))
    else:
        # Sorting is what takes time, and the nucleus is nearly always among the few that weigh something.
        mass = float(weights.sum(dtype=np.float64))
        for floor in _FLOORS:
            near = np.flatnonzero(weights >= floor)
            if weights[near].sum(dtype=np.float64) >= top_p * mass:
                break
    near = near[np.argsort(-weights[near], kind="stable")]
    running = weights[near].cumsum(dtype=np.float64)
    return near[: int(np.searchsorted(running, top_p * mass)) + 1]


def _pick(weights: NDArray[np.float32], uniform: float) -> int:
    """Draw from a distribution with one number from [0, 1); never a token that weighs nothing.

    The running sum is searched in two steps, for adding up a whole vocabulary one by one takes long.
    """
    blocks = np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK), dtype=np.float64).cumsum()
    wanted = uniform * blocks[-1]
    block = min(int(np.searchsorted(blocks, wanted, side="right")), len(blocks) - 1)
    inner = weights[block * _BLOCK : (block + 1) * _BLOCK].cumsum(dtype=np.float64)
    wanted -= blocks[block - 1] if block else 0.0
    place = int(np.searchsorted(inner, wanted, side="right"))
    # Sums round: past the last token that weighs something there is none.
    return block * _BLOCK + min(place, int(np.searchsorted(inner, inner[-1])))
