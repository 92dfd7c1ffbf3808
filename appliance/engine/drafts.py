"""Drafting by look-up in the text so far (prompt-lookup decoding, Saxena 2023).

An answer that quotes its prompt, or repeats itself, goes on as it went on before. The tokens that
followed the last time are computed along with the next one, and kept as far as they are what would
have been chosen anyway; each costs less than a step of its own. Nothing of the answer changes.
"""

from __future__ import annotations

LONGEST = 7
NGRAM = 3
_MEMORY = 0.8  # weight of the past in the running share of drafted tokens that were right
_WORTH = 0.25  # a drafted token costs about a quarter of a step
_REST = 16  # tokens without drafts after they have not been worth it


class Drafter:
    """Drafts for one sequence."""

    def __init__(self, tokens: list[int]) -> None:
        """Follow `tokens`, which grows."""
        self._tokens = tokens
        self._seen: dict[tuple[int, ...], int] = {}
        self._indexed = NGRAM - 1
        self._share = 0.5
        self._rest_until = 0

    def draft(self, limit: int) -> list[int]:
        """Up to `limit` tokens that may come next; often none."""
        tokens = self._tokens
        if limit < 1 or len(tokens) < max(self._rest_until, NGRAM + 1):
            return []
        # The last n-gram itself is entered when something follows it.
        for end in range(self._indexed, len(tokens) - 1):
            self._seen[tuple(tokens[end - NGRAM + 1 : end + 1])] = end + 1
        self._indexed = max(self._indexed, len(tokens) - 1)
        start = self._seen.get(tuple(tokens[-NGRAM:]))
        if start is None:
            return []
        return tokens[start : start + min(limit, LONGEST)]

    def learn(self, drafted: int, right: int) -> None:
        """Say how many of the drafted tokens were right."""
        if not drafted:
            return
        self._share = _MEMORY * self._share + (1 - _MEMORY) * right / drafted
        if self._share < _WORTH:
            self._rest_until = len(self._tokens) + _REST
            self._share = 1.2 * _WORTH  # one more failure, and it rests again
