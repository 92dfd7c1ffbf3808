"""The running batch: slots that join, are prefilled piece by piece, decode together and leave.

One thread calls `step`. A step is one run of the model for each session in use: the next token of
every answer, and beside them a piece of the prompts that wait. The piece is small while answers are
under way, so that their streams hardly slow down, and large when there are none. What is computed
for a token does not depend on its company or on how its sequence is cut (see `session.py`), so neither
does an answer.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from appliance.engine.cache import KVCache
from appliance.engine.prefixes import BLOCK, Key, PrefixCache
from appliance.engine.sequence import Sequence
from appliance.engine.session import Session
from appliance.engine.timings import Timings
from appliance.errors import Unavailable
from appliance.logs import about

logger = logging.getLogger(__name__)

RELEASE_ABOVE = 256  # tokens; a shorter row's memory is kept for the next request
DRAFTED_TOKENS = 16  # tokens of answers in a step up to which drafting is cheap


@dataclass
class Work:
    """What the steps have done so far, in tokens; those accepted are of the drafted ones."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0


class Batch:
    """The slots and what one step does to them."""

    def __init__(
        self, cache: KVCache, prefixes: PrefixCache, *, prefill_chunk: int, prefill_beside: int, drafts: bool
    ) -> None:
        """Use the rows of `cache`.

        Args:
            cache: keys and values.
            prefixes: beginnings computed before.
            prefill_chunk: prompt tokens in a step without answers.
            prefill_beside: prompt tokens in a step beside answers.
            drafts: whether to draft.
        """
        self.work = Work()
        self.timings = Timings()
        self.failures: Counter[str] = Counter()
        """By weights: steps that failed, and answers that ended in numbers which are none."""
        self._cache = cache
        self._prefixes = prefixes
        self._chunk = prefill_chunk
        self._beside = prefill_beside
        self._drafts = drafts
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

    def clients(self) -> list[str]:
        """Who holds the slots, a client as often as it has one."""
        return [sequence.request.client for sequence in self._sequences()]

    def join(self, sequence: Sequence, session: Session) -> None:
        """Give a sequence the lowest free slot and the session that will answer it."""
        self.timings.queue.observe(time.monotonic() - sequence.queued)
        sequence.row = self._rows.index(None)
        sequence.session = session
        self._rows[sequence.row] = sequence
        self._prompts.append(sequence)

    def step(self) -> None:
        """Advance every answer by a token at least, and the prompts by a piece."""
        for sequence in list(self._sequences()):
            if sequence.cancelled:
                self._leave(sequence)
        answers = [sequence for sequence in self._sequences() if not sequence.prefilling]
        pieces = self._answers(answers) | self._pieces(self._beside if answers else self._chunk)
        self.timings.batch.observe(len(pieces))
        for session in dict.fromkeys(sequence.session for sequence in pieces):
            assert session is not None
            self._run(session, {s: piece for s, piece in pieces.items() if s.session is session})

    def abandon(self) -> list[Sequence]:
        """Free every slot, keeping nothing of what they computed; returns who held them."""
        sequences = list(self._sequences())
        for sequence in sequences:
            self._free(sequence)
        return sequences

    # -- what a step computes -----------------------------------------------------------------

    def _answers(self, answers: list[Sequence]) -> dict[Sequence, list[int]]:
        """The last token of each answer, and what may follow it."""
        limit = DRAFTED_TOKENS // len(answers) - 1 if answers and self._drafts else 0
        return {
            sequence: [sequence.tokens[-1], *sequence.drafter.draft(min(limit, sequence.room - 1))]
            for sequence in answers
        }

    def _pieces(self, budget: int) -> dict[Sequence, list[int]]:
        """Of the prompts, taking turns, up to `budget` tokens."""
        pieces: dict[Sequence, list[int]] = {}
        # Who begins alike waits for the first to compute a block, and copies it then.
        under_way = {self._key(s): s for s in self._prompts if s.length > s.kept}
        for sequence in list(self._prompts):
            self._restore(sequence)
            key = self._key(sequence)
            if key is not None and under_way.setdefault(key, sequence) is not sequence:
                continue
            if budget < 1:
                break
            tokens = sequence.tokens[sequence.length : sequence.length + budget]
            pieces[sequence] = tokens
            budget -= len(tokens)
            self._prompts.remove(sequence)
            if sequence.length + len(tokens) < len(sequence.tokens):
                self._prompts.append(sequence)
        return pieces

    def _run(self, session: Session, pieces: dict[Sequence, list[int]]) -> None:
        """Compute the pieces of the sequences that share a session.

        Rows must be neighbours. One in between that has no piece is padding to attention alone.
        """
        by_row = {sequence.row: sequence for sequence in pieces}
        first, last = min(by_row), max(by_row)
        tokens: list[int] = []
        wanted: list[int] = []
        lengths = np.zeros(last + 1 - first, np.int32)
        counts = np.zeros(last + 1 - first, np.int32)
        for row in range(first, last + 1):
            held = self._rows[row]
            lengths[row - first] = held.length if held is not None else 0
            if (sequence := by_row.get(row)) is None:
                continue
            piece = pieces[sequence]
            start, end = len(tokens), len(tokens) + len(piece)
            if not sequence.prefilling:
                wanted += range(start, end)
            elif (scored := sequence.request.score_from) is not None:
                wanted += range(start + max(scored - 1 - sequence.length, 0), end)
            elif sequence.length + len(piece) == len(sequence.tokens):
                wanted.append(end - 1)
            tokens += piece
            counts[row - first] = len(piece)
        try:
            logits = session.step(
                np.array(tokens, np.int64), first, lengths, counts, np.array(wanted, np.int64)
            )
        except Exception:
            self.failures[session.weights] += 1
            raise
        at = 0
        for row in sorted(by_row):
            sequence = by_row[row]
            piece = pieces[sequence]
            if not sequence.prefilling:
                self._choose(sequence, logits[at : at + len(piece)], piece)
                at += len(piece)
            else:
                self.work.prompt_tokens += len(piece)
                first = sequence.length
                sequence.length += len(piece)
                self._keep(sequence)
                if (scored := sequence.request.score_from) is not None:
                    first = max(first + 1, scored)
                    count = max(sequence.length + 1 - first, 0)
                    self._score(sequence, logits[at : at + count], first)
                    at += count
                elif not sequence.prefilling:
                    self._choose(sequence, logits[at : at + 1], [])
                    at += 1

    def _choose(self, sequence: Sequence, logits: NDArray[np.float32], piece: list[int]) -> None:
        """Take tokens from [n, vocab] logits: the next one, and on as long as they are the drafted ones."""
        drafted = piece[1:]
        sequence.length += bool(piece)
        before = self.work.generated_tokens
        right = 0
        for row in logits:
            if not np.isfinite(row.max()):  # a single NaN or +inf shows there; -inf is a token ruled out
                self._give_up(sequence)
                break
            self.work.generated_tokens += 1
            if sequence.accept(row):
                self._leave(sequence)
                break
            if right == len(drafted) or sequence.tokens[-1] != drafted[right]:
                break
            right += 1
            sequence.length += 1
        self._time(sequence, self.work.generated_tokens - before)
        sequence.drafter.learn(len(drafted), right)
        self.work.drafted_tokens += len(drafted)
        self.work.accepted_tokens += right

    def _score(self, sequence: Sequence, logits: NDArray[np.float32], first: int) -> None:
        if not np.isfinite(logits.max(axis=1)).all():
            self._give_up(sequence)
            return
        sequence.score(logits, first)
        if not sequence.prefilling:
            self._leave(sequence)

    def _time(self, sequence: Sequence, tokens: int) -> None:
        """So many tokens of an answer are there at once; each has taken its share of the time."""
        now = time.monotonic()
        if tokens and not sequence.spoke:
            self.timings.first_token.observe(now - sequence.queued)
        elif tokens:
            share = (now - sequence.spoke) / tokens
            for _ in range(tokens):
                self.timings.next_token.observe(share)
        sequence.spoke = now

    # -- slots and their memory ---------------------------------------------------------------

    def _sequences(self) -> Iterator[Sequence]:
        return (sequence for sequence in self._rows if sequence is not None)

    def _key(self, sequence: Sequence) -> Key | None:
        """What the first block that is not kept yet is known by; None when it is not whole."""
        assert sequence.session is not None
        weights, client = sequence.session.weights, sequence.request.client
        return self._prefixes.key(weights, sequence.block, sequence.tokens, sequence.kept, client)

    def _restore(self, sequence: Sequence) -> None:
        """Copy what is known of a prompt, but for its last token: that one says what comes next."""
        while sequence.length == sequence.kept and sequence.length + BLOCK < sequence.restorable:
            key = self._key(sequence)
            block = None if key is None else self._prefixes.restore(sequence.row, sequence.length, key)
            if block is None:
                return
            sequence.block = block
            sequence.length = sequence.kept = sequence.length + BLOCK
            sequence.cached += BLOCK
            self.work.cached_tokens += BLOCK

    def _keep(self, sequence: Sequence) -> None:
        """Give the whole blocks of a sequence to the prefix cache."""
        while sequence.kept + BLOCK <= sequence.length and (key := self._key(sequence)) is not None:
            sequence.block = self._prefixes.keep(sequence.row, sequence.kept, key)
            sequence.kept += BLOCK

    def _leave(self, sequence: Sequence) -> None:
        self._keep(sequence)  # a conversation goes on from its last answer
        self._free(sequence)

    def _give_up(self, sequence: Sequence) -> None:
        """End an answer whose numbers mean nothing; what was computed of it is not kept."""
        assert sequence.session is not None
        self.failures[sequence.session.weights] += 1
        with about(request=sequence.asked_by):
            logger.error("The model gives numbers that are not finite; this answer ends with an error")
        sequence.emit(Unavailable("The model gives numbers that are not finite."))
        self._free(sequence)

    def _free(self, sequence: Sequence) -> None:
        self._rows[sequence.row] = None
        sequence.session = None  # the last sequence of a replaced session frees it
        if sequence.length > RELEASE_ABOVE:
            self._cache.release(sequence.row)
        if sequence in self._prompts:
            self._prompts.remove(sequence)
