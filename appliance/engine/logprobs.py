"""Log probabilities of the tokens of an answer, as the model itself gives them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TokenLogprob:
    """One token of an answer and how likely it was.

    Attributes:
        token: its id.
        logprob: natural log of its probability: the softmax of the model's own logits, before
            penalties, bias, grammar and temperature.
        top: (id, logprob) of the likeliest tokens in its place, likeliest first.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def token_logprob(logits: NDArray[np.float32], token: int, count: int) -> TokenLogprob:
    """Score `token` and name the `count` likeliest tokens, from [vocab] logits."""
    peak = logits.max()
    norm = float(peak) + float(np.log(np.exp(logits - peak).sum(dtype=np.float64)))
    top: NDArray[np.int64] = np.empty(0, np.int64)
    if count:
        top = np.argpartition(logits, -count)[-count:]
        # Equally likely ones by id, so that the greedy token comes first.
        top = top[np.lexsort((top, -logits[top]))]
    return TokenLogprob(
        token,
        float(logits[token]) - norm,
        tuple((int(ident), float(logits[ident]) - norm) for ident in top),
    )
