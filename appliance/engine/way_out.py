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
import time
from collections.abc import Sequence

import llguidance
import numpy as np

STEPS = 400
"""Places looked at in one search. An honest schema needs one for each decision it asks for."""
NEAR = 24
"""Tokens of a known way that may be skipped."""
SECONDS = 0.2
"""Of processor time for a search. Others wait for their next token meanwhile, and honest searches take a few
thousandths; beyond it the answer ends with an error."""
LONGEST = 1500
"""Tokens of a way out that is still looked for."""
_CLOSING = (b"}}", b"]}", b"}]", b"]]", b"}", b"]")
_UNQUOTING = (b'"}', b'"]', b'"')
_NEXT = (b", ", b",", b":")
_SCALARS = (b"null", b"0", b"1", b'""', b"true", b"false", b"5", b"9", b"-", b".")
_OPENING = (b"[]", b"{}", b'"', b"[", b"{")
_FORMS = (b'a@a.aa"', b'1D"')
"""Ends of strings of a format in which one letter is as good as another for long: e-mail, duration."""
_PLAIN = (b"a", b"e", b"A", b"0", b"1", b".", b"-", b" ", b"/", b":", b"@", b"_")
# What a decision more costs, as against a token that is less likely to end; and one that changes nothing.
_STEP, _STILL = 0.01, 0.3
_SIMPLE = 4
"""Tokens that only close: behind them nothing is starved."""


class TooCostly(Exception):
    """A search has taken too long."""


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
        groups = (_CLOSING, _UNQUOTING, _NEXT, _SCALARS, _OPENING, _PLAIN)
        *self._groups, self._plain = (
            np.array([place[text] for text in group if text in place], np.int64) for group in groups
        )
        # One with a bracket opens more than it closes: `{"` beside `null` is the way into a tree without end.
        quoted = [
            ident
            for text, ident in place.items()
            if text.endswith(b'"') and len(text) > 1 and not set(text) & set(b"{[")
        ]
        self._quoted = np.array(sorted(quoted, key=lambda ident: len(texts[ident])), np.int64)
        self._forms = [tokenizer.tokenize_bytes(form) for form in _FORMS]
        self._quote = place.get(b'"', -1)
        self._letter, self._brace, self._empty = (place.get(text, -1) for text in (b"a", b"}", b'""'))
        # The longest first, for what must have some length; those that are only space or marks last.
        plain = [
            len(text) if any(char > 127 or chr(char).isalnum() for char in text) else 0 for text in texts
        ]
        self._by_length = np.argsort(-np.array(plain), kind="stable")

    def forms(self, place: llguidance.LLMatcher, mask: bytes) -> list[list[int]]:
        """Ends of strings that fit, where a string cannot end at once; `mask` is what the place allows."""
        if mask[self._quote >> 3] >> (self._quote & 7) & 1:
            return []
        return [form for form in self._forms if place.validate_tokens(form) == len(form)]

    def candidates(self, mask: bytes) -> list[int]:
        """A few of the tokens that a mask allows, the likeliest to come to an end first."""
        allowed = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little").view(np.bool_)
        closing, unquoting, following, scalars, opening = (group[allowed[group]] for group in self._groups)
        longest = self._by_length[allowed[self._by_length]]
        if allowed[self._letter] and allowed[self._brace]:  # in a string, where brackets are but text
            order = [*unquoting[:2], *longest[:1], *self._plain[allowed[self._plain]]]
        elif allowed[self._empty]:  # where a string begins
            order = [*closing[:2], *following[:1], *scalars[:3], *unquoting[-1:], *opening[:2], *longest[:1]]
        elif not (closing.size or following.size or unquoting.size):  # in a number, or a string of some form
            quoted = self._quoted[allowed[self._quoted]]
            order = [
                *quoted[:1],
                *longest[:1],
                *scalars[:4],
                *opening[:2],
                *self._plain[allowed[self._plain]],
            ]
        else:
            order = [*closing[:2], *following[:1], *unquoting[:2], *scalars[:3], *opening[:2], *longest[:1]]
        if len(order) < 4:
            order += [*longest[-2:], *longest[1:2]]
        return [ident for ident in dict.fromkeys(map(int, order)) if ident not in self.ends]


class Search:
    """Finds ways out.

    What looks likeliest to end is followed first, and places where a likely token was passed over come
    later (limited discrepancy search, Harvey and Ginsberg 1995): a search by length alone would try all
    short strings before it closes one.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    def find(
        self, start: llguidance.LLMatcher, room: int, known: Sequence[int] = (), *, shortest: bool = False
    ) -> tuple[list[int], int] | None:
        """A way out, and how much of it is the end of one known before; None when none is found.

        Args:
            start: where it begins; not changed.
            room: tokens it may have.
            known: a way out of the place before: an end of it often fits.
            shortest: look for shorter ones than the first.

        Raises:
            TooCostly: it takes too long. Whether it does depends on the machine; what is found does not.
        """
        began = time.thread_time()
        tokenizer = self._vocabulary.tokenizer
        best: tuple[list[int], int] | None = None
        most = min(room, LONGEST)
        # (how unlikely, a number that tells equals apart, the place before, tokens up to there, those from
        # there, what it allowed)
        waiting: list[tuple[float, int, llguidance.LLMatcher, tuple[int, ...], list[int], bytes]]
        waiting = [(0.0, 0, start, (), [], b"")]
        number = 0
        for _ in range(STEPS):
            if not waiting:
                break
            if time.thread_time() - began > SECONDS:
                if best is None:
                    raise TooCostly
                break
            unlikely, _, place, path, choice, before = heapq.heappop(waiting)
            if len(path) + len(choice) > most:
                continue
            if choice:  # a copy is made only of what is looked at: some are large
                place, path = place.deep_copy(), (*path, *choice)
                if not place.consume_tokens(choice) or place.is_error():
                    continue
            kept = fitting_end(place, known, self._vocabulary.ends)
            if kept is not None:
                if len(path) + len(kept) > most:
                    continue
                best = [*path, *kept], len(kept)
                if not shortest:
                    break
                most = len(best[0]) - 1
                continue
            # What has only one way on need not be looked for.
            tokens = tokenizer.tokenize_bytes(place.compute_ff_bytes())
            if tokens and place.validate_tokens(tokens) == len(tokens):
                choices, mask = [tokens], b""
            else:
                mask = place.compute_bitmask()
                choices = self._vocabulary.forms(place, mask)
                choices += [[ident] for ident in self._vocabulary.candidates(mask)]
                unlikely += _STEP if mask != before else _STILL
            for rank, choice in enumerate(choices):
                number += 1
                heapq.heappush(waiting, (unlikely + rank, number, place, path, choice, mask))
        return best


def fitting_end(
    place: llguidance.LLMatcher, known: Sequence[int], ends: tuple[int, ...]
) -> Sequence[int] | None:
    """An end of a known way, if one leads from a place to where the answer may end, too."""
    if place.is_accepting():
        return ()
    # A number goes on where its first digit was to come: without that is shorter.
    for start in (1, 0, *range(2, NEAR)):
        rest = known[start:]
        if rest and place.validate_tokens([*rest, ends[0]]) == len(rest) + 1:
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
        self._free = not path  # saying nothing is an answer: so it is text, at least to begin with
        self.closed = False
        """Whether the answer could end here, not only because text may end anywhere."""
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
        before = self._path
        kept = fitting_end(ahead, self._path, self._ends)
        if kept is None:
            found = self._search.find(ahead, room, before)
            if found is None:
                return False
            self._path, follows = found
            self._spent += 1
            self._give_term(follows)
        else:
            if len(kept) > room:
                return False
            self._path = kept
            self._spent += 1
            if len(kept) == len(before):  # a string that has become longer, say
                self._give_term(len(kept) - 1)
        self.closed = not self._path and (bool(before) or not self._free)
        while self._open and len(self._path) <= self._open[-1][0]:
            self._open.pop()
        return True

    def _give_term(self, follows: int) -> None:
        """Something is open until so many tokens of the way are left: say how long it may be."""
        room, until = self._limit, -1
        if self._open:
            until, room = self._open[-1]
        if follows <= until:
            return
        spare = room - self._spent - (len(self._path) - max(until, 0))
        term = spare if follows - max(until, 0) <= _SIMPLE else spare // 2
        self._open.append((follows, self._spent + max(term, 0)))
