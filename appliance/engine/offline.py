"""The model without the server: score one sequence at a time, and continue several at once.

The gate judges an adapter with this, on the very session code that will serve it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from appliance.adapters.file import Adapter
from appliance.engine.cache import KVCache
from appliance.engine.session import Session
from appliance.errors import Unavailable
from appliance.model.bundle import Bundle
from appliance.model.tokenizer import Tokenizer

CHUNK = 128  # tokens a step; the logits of a chunk are [CHUNK, vocab] floats
ROWS = 16  # sequences that are continued together
PROBE_PROMPT = "The capital of France is"
PROBE_TOKENS = 8


class OfflineModel:
    """A bundle with one adapter, for scoring."""

    def __init__(
        self, bundle: Bundle, adapter: Adapter | None = None, *, threads: int = 0, capacity: int = 2048
    ) -> None:
        """Build it; sequences may be `capacity` tokens long."""
        self._bundle = bundle
        self._threads = threads
        self._cache = KVCache(bundle.manifest, ROWS, min(capacity, bundle.manifest.context_length))
        self.use(adapter)

    @property
    def capacity(self) -> int:
        """Longest sequence in tokens."""
        return self._cache.capacity

    def use(self, adapter: Adapter | None) -> None:
        """Score with another adapter from now on."""
        self._session = Session(self._bundle, adapter, self._cache, threads=self._threads)

    def logprobs(self, prompt: Sequence[int], answer: Sequence[int]) -> NDArray[np.float64]:
        """Natural log probability of each answer token after the prompt, shape [len(answer)].

        Raises:
            ValueError: the prompt is empty, or both together exceed the capacity.
        """
        tokens = [*prompt, *answer]
        if not prompt or len(tokens) > self.capacity:
            raise ValueError(f"{len(tokens)} tokens do not fit: 1 to {self.capacity}")
        # The last position of the prompt predicts the answer's first token.
        parts = [
            _log_softmax_at(logits, np.array(tokens[at : at + len(logits)], np.int64))
            for at, logits in _read(self._session, 0, tokens[:-1], len(prompt) - 1)
        ]
        return np.concatenate(parts) if parts else np.empty(0)

    def perplexity(self, tokens: Sequence[int]) -> float:
        """exp of the mean negative log probability of all tokens but each window's first."""
        scores = [
            self.logprobs(window[:1], window[1:])
            for start in range(0, len(tokens), self.capacity)
            if len(window := tokens[start : start + self.capacity]) > 1
        ]
        return float(np.exp(-np.concatenate(scores).mean()))

    def greedy(
        self, prompts: Sequence[Sequence[int]], max_tokens: int, eos_ids: Sequence[int] = ()
    ) -> Iterator[list[int]]:
        """The likeliest continuation of each prompt; they come in groups of `ROWS`. See `greedy`."""
        for start in range(0, len(prompts), ROWS):
            yield from greedy(self._session, prompts[start : start + ROWS], max_tokens, eos_ids)


def greedy(
    session: Session, prompts: Sequence[Sequence[int]], max_tokens: int, eos_ids: Sequence[int] = ()
) -> list[list[int]]:
    """Continue each prompt with the likeliest tokens, without the end-of-turn token.

    Prompt i takes row i of the session's cache.

    Raises:
        Unavailable: the session gives non-finite numbers.
    """
    logits = np.concatenate(
        [
            part
            for row, prompt in enumerate(prompts)
            for _, part in _read(session, row, prompt, len(prompt) - 1)
        ]
    )
    count, every = len(prompts), np.arange(len(prompts), dtype=np.int64)
    lengths, ones = np.array([len(prompt) for prompt in prompts], np.int32), np.ones(count, np.int32)
    answers: list[list[int]] = [[] for _ in prompts]
    open_rows = set(range(count))
    for place in range(max_tokens):
        tokens = _likeliest(logits)
        for row in sorted(open_rows):
            if tokens[row] in eos_ids:
                open_rows.discard(row)
            else:
                answers[row].append(int(tokens[row]))
        if not open_rows or place + 1 == max_tokens:
            break
        # Rows that have ended are computed on with the others: nobody looks at them.
        logits = session.step(tokens, 0, lengths + np.int32(place), ones, every)
    return answers


def probe(session: Session, tokenizer: Tokenizer) -> tuple[int, ...]:
    """A few greedy tokens after a fixed prompt: finite, and a fingerprint of the weights' behaviour."""
    return tuple(greedy(session, [tokenizer.encode(PROBE_PROMPT)], PROBE_TOKENS)[0])


def _read(
    session: Session, row: int, tokens: Sequence[int], first: int
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Put the tokens into the row; yields (position + 1, logits) by chunks, from position `first` on."""
    for start in range(0, len(tokens), CHUNK):
        chunk = np.array(tokens[start : start + CHUNK], np.int64)
        wanted = np.arange(max(first - start, 0), len(chunk), dtype=np.int64)
        place, count = np.array([start], np.int32), np.array([len(chunk)], np.int32)
        logits = session.step(chunk, row, place, count, wanted)
        if len(wanted):
            yield start + int(wanted[0]) + 1, logits


def _likeliest(logits: NDArray[np.float32]) -> NDArray[np.int64]:
    if not np.isfinite(logits).all():
        raise Unavailable("The model gives numbers that are not finite.")
    best: NDArray[np.int64] = logits.argmax(axis=1)
    return best


def _log_softmax_at(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> NDArray[np.float64]:
    peak = logits.max(axis=1, keepdims=True)
    total = np.exp(logits - peak).sum(axis=1, dtype=np.float64)
    chosen = np.take_along_axis(logits, targets[:, None], axis=1)[:, 0].astype(np.float64)
    scores: NDArray[np.float64] = chosen - peak[:, 0] - np.log(total)
    return scores
