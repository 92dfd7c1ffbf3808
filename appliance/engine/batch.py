"""The running batch: slots that join, are prefilled chunk by chunk, decode together and leave.

One thread calls `step`. A step computes at most one prompt chunk and then one token for every slot
that is past its prompt, so a long prompt delays the others by one chunk at a time. Chunk borders
depend on the prompt alone and the session is bit-equal for every batch size, so an answer does not
depend on who else is being answered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np

from appliance.engine.cache import KVCache
from appliance.engine.sequence import Sequence
from appliance.engine.session import Session

RELEASE_ABOVE = 256  # tokens; a shorter row's memory is kept for the next request


class Batch:
    """The slots and what one step does to them."""

    def __init__(self, cache: KVCache, prefill_chunk: int) -> None:
        self._cache = cache
        self._chunk = prefill_chunk
        self._rows: list[Sequence | None] = [None] * cache.rows
        self._prompts: deque[Sequence] = deque()

    @property
    def active(self) -> int:
        """Sequences that hold a slot."""
        return sum(sequence is not None for sequence in self._rows)

    @property
    def full(self) -> bool:
        """Whether no slot is free."""
        return None not in self._rows

    def join(self, sequence: Sequence, session: Session) -> None:
        """Give a sequence the lowest free slot and the session that will answer it."""
        sequence.row = self._rows.index(None)
        sequence.session = session
        self._rows[sequence.row] = sequence
        self._prompts.append(sequence)

    def step(self) -> tuple[int, int]:
        """Advance; returns (prompt tokens computed, tokens generated)."""
        for sequence in list(self._sequences()):
            if sequence.cancelled:
                self._leave(sequence)
        decoding = [sequence for sequence in self._sequences() if not sequence.prefilling]
        prompt_tokens, generated = self._prefill()
        for session in dict.fromkeys(sequence.session for sequence in decoding):
            assert session is not None
            generated += self._decode(session, [s for s in decoding if s.session is session])
        return prompt_tokens, generated

    def abandon(self) -> list[Sequence]:
        """Free every slot; returns who held them."""
        sequences = list(self._sequences())
        for sequence in sequences:
            self._leave(sequence)
        return sequences

    def _sequences(self) -> Iterator[Sequence]:
        return (sequence for sequence in self._rows if sequence is not None)

    def _leave(self, sequence: Sequence) -> None:
        self._rows[sequence.row] = None
        sequence.session = None  # the last sequence of a replaced session frees it
        if sequence.length > RELEASE_ABOVE:
            self._cache.release(sequence.row)
        if sequence in self._prompts:
            self._prompts.remove(sequence)

    def _prefill(self) -> tuple[int, int]:
        if not self._prompts:
            return 0, 0
        sequence = self._prompts.popleft()
        assert sequence.session is not None
        chunk = sequence.request.prompt[sequence.length : sequence.length + self._chunk]
        complete = sequence.length + len(chunk) == len(sequence.request.prompt)
        logits = sequence.session.step(
            np.array([chunk], np.int64),
            np.array([sequence.length], np.int32),
            sequence.row,
            np.array([len(chunk) - 1] if complete else [], np.int64),
        )
        sequence.length += len(chunk)
        if not complete:
            self._prompts.append(sequence)  # prompts take turns
            return len(chunk), 0
        if sequence.accept(logits[0]):
            self._leave(sequence)
        return len(chunk), 1

    def _decode(self, session: Session, sequences: list[Sequence]) -> int:
        """One token for each of `sequences`, which share a session.

        Rows must be neighbours, so rows in between that belong to others run along: their dummy token is
        written where their next real one goes and is overwritten by it.
        """
        first = min(sequence.row for sequence in sequences)
        count = max(sequence.row for sequence in sequences) + 1 - first
        tokens = np.zeros((count, 1), np.int64)
        lengths = np.zeros(count, np.int32)
        for offset in range(count):
            held = self._rows[first + offset]
            if held is not None:
                lengths[offset] = held.length
        for sequence in sequences:
            tokens[sequence.row - first, 0] = sequence.last_token
        wanted = np.array([sequence.row - first for sequence in sequences], np.int64)
        logits = session.step(tokens, lengths, first, wanted)
        for sequence, row_logits in zip(sequences, logits, strict=True):
            sequence.length += 1
            if sequence.accept(row_logits):
                self._leave(sequence)
        return len(sequences)
