"""How an answer under a grammar still ends within its room: a way out is known at every token.

A small model opens strings and lists that it never closes. So beside each answer goes a completion of
it: tokens that lead from where it stands to where it may end. A token of the model is taken when from
there, too, a way out is known that fits into the room left; otherwise the known way is gone. Most
tokens do not change the way (a word more in a string), which costs microseconds to see. What opens
something new needs a short search.

That alone would give the first string all the room and its neighbours none. So whatever is opened has a
term of its own: where more must follow it, half of what is to spare.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import llguidance
import numpy as np

STEPS = 400
"""Places looked at in one search. An honest schema needs one for each decision it asks for."""
LONGEST = 1500
"""Tokens of a way out that is still looked for."""
_CLOSING = (b'"}', b'"]', b"}", b"]", b"}}", b"]}", b"}]", b"]]", b'"')
_SCALARS = (b"null", b"0", b"1", b'""', b"true", b"false", b"5", b"9", b"-")
_OPENING = (b"[]", b"{}", b'"', b"[", b"{")
_GOING_ON = (b'", "', b", ", b",", b'"', b":", b".", b"0")
_NESTING = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_SIMPLE = 4
"""Tokens that only close: behind them nothing is starved."""


class Vocabulary:
    """The tokens that searches look at first."""

    def __init__(self, tokenizer: llguidance.LLTokenizer) -> None:
        texts = [tokenizer.decode_bytes([ident]) for ident in range(tokenizer.vocab_size)]
        place: dict[bytes, int] = {}
        for ident, text in enumerate(texts):
            if text and not tokenizer.is_special_token(ident):
                place.setdefault(text, ident)
        self.tokenizer = tokenizer
        self.ends = tuple(tokenizer.eos_tokens)
        self._groups = [
            np.array([place[text] for text in group if text in place], np.int64)
            for group in (_CLOSING, _SCALARS, _OPENING, _GOING_ON)
        ]
        # The longest first, for what must have some length; those that are only space or marks last.
        plain = [
            len(text) if any(char > 127 or chr(char).isalnum() for char in text) else 0 for text in texts
        ]
        self._by_length = np.argsort(-np.array(plain), kind="stable")

    def candidates(self, mask: bytes) -> list[int]:
        """A few of the tokens that a mask allows, the likeliest to come to an end first."""
        allowed = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")
        found: dict[int, None] = {}
        for group, most in zip(self._groups, (2, 3, 3, 2), strict=True):
            for ident in group[allowed[group] == 1][:most]:
                found.setdefault(int(ident))
        order = self._by_length[allowed[self._by_length] == 1]
        for ident in order[:1]:
            found.setdefault(int(ident))
        if len(found) < 3:
            for ident in order[-2:]:
                found.setdefault(int(ident))
        return [ident for ident in found if ident not in self.ends]


class Search:
    """Finds ways out, the shorter ones first."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    def find(
        self, start: llguidance.LLMatcher, room: int, known: Sequence[int] = (), steps: int = STEPS
    ) -> tuple[list[int], int] | None:
        """A way out, and how much of it is the end of one known before; None when none is found.

        Args:
            start: where it begins; not changed.
            room: tokens it may have.
            known: a way out of the place before: an end of it often fits.
            steps: places to look at.
        """
        # By length, and by how much stands open: a search that counts only length would try every list
        # of two before it closes a list of one.
        waiting: list[tuple[int, int, llguidance.LLMatcher, tuple[int, ...], int]] = [(0, 0, start, (), 0)]
        number = 0
        while waiting and steps:
            _, _, place, path, opened = heapq.heappop(waiting)
            steps -= 1
            if place is not start or not path:
                kept = fitting_end(place, known, self._vocabulary.ends)
                if kept is not None:
                    if len(path) + len(kept) <= room:
                        return [*path, *kept], len(kept)
                    continue
            # What has only one way on need not be looked for.
            tokens = self._vocabulary.tokenizer.tokenize_bytes(place.compute_ff_bytes())
            choices = [tokens] if tokens and place.validate_tokens(tokens) == len(tokens) else []
            if not choices:
                mask = place.compute_bitmask()
                if place.is_error():
                    continue
                choices = [[ident] for ident in self._vocabulary.candidates(mask)]
            for tokens in choices:
                if len(path) + len(tokens) > min(room, LONGEST):
                    continue
                ahead = place.deep_copy()
                if not ahead.consume_tokens(tokens) or ahead.is_error():
                    continue
                text = self._vocabulary.tokenizer.decode_bytes(tokens)
                more = (
                    opened + sum(text.count(char) for char in b"[{") - sum(text.count(char) for char in b"]}")
                )
                number += 1
                longer = (*path, *tokens)
                # Later ones first: of equals the one that has come further.
                heapq.heappush(waiting, (len(longer) + 2 * more, -number, ahead, longer, more))
        return None


def fitting_end(
    place: llguidance.LLMatcher, known: Sequence[int], ends: tuple[int, ...]
) -> Sequence[int] | None:
    """The shortest end of a known way that leads from a place to where the answer may end."""
    if place.is_accepting():
        return ()
    end = ends[0]
    for start in range(len(known) - 1, -1, -1):
        rest = known[start:]
        if place.validate_tokens([*rest, end]) == len(rest) + 1:
            return rest
    return None


class WayOut:
    """The way out of one answer, kept up with its tokens."""

    def __init__(self, search: Search, path: Sequence[int], limit: int, ends: tuple[int, ...]) -> None:
        """Begin.

        Args:
            search: finds new ways.
            path: the way out of the beginning, no longer than `limit`.
            limit: tokens that the answer may have.
            ends: tokens that end it.
        """
        self._search = search
        self._path: Sequence[int] = path
        self._limit = limit
        self._ends = ends
        self._spent = 0
        self._open: list[tuple[int, int]] = []  # (tokens of the way that follow it, when it is to be closed)

    @property
    def next(self) -> int:
        """The first token of the way."""
        return self._path[0] if self._path else self._ends[0]

    @property
    def due(self) -> bool:
        """Whether the way must be gone now."""
        if not self._path:
            return False
        if self._spent + len(self._path) >= self._limit:
            return True
        return bool(self._open) and self._spent >= self._open[-1][1]

    def follow(self, ahead: llguidance.LLMatcher, token: int) -> bool:
        """Whether a token may be taken, which led to `ahead`; then it counts as taken."""
        room = self._limit - self._spent - 1
        kept = fitting_end(ahead, self._path, self._ends)
        if kept is not None:
            if len(kept) > room:
                return False
            self._path = kept
        else:
            found = self._search.find(ahead, room, self._path)
            if found is None:
                return False
            self._path, follows = found
            if not self._open or follows > self._open[-1][0]:
                spare = room - len(self._path)
                term = spare if follows <= _SIMPLE else spare // 2
                self._open.append((follows, self._spent + 1 + term))
        self._spent += 1
        while self._open and len(self._path) <= self._open[-1][0]:
            self._open.pop()
        return True
