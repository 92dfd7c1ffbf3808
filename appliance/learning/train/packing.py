"""Sequences packed into one row, each attending to itself only, so no token is padding.

The start that nearly all share (the template's system message) is in the row once, and all that
begin with it attend to it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

ROW_TOKENS = 512  # of a row when nothing is learned from it


def groups(sequences: Iterable[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    """Sequences for rows of about `ROW_TOKENS`, in their order."""
    group: list[tuple[int, ...]] = []
    for ids in sequences:
        group.append(ids)
        if sum(map(len, group)) >= ROW_TOKENS:
            yield group
            group = []
    if group:
        yield group


def begins(ids: tuple[int, ...], prefix: tuple[int, ...]) -> bool:
    """Whether the sequence leaves its first tokens to the shared prefix of a row."""
    # One more token must be left, as the prefix itself predicts nothing in a row.
    return bool(prefix) and len(ids) > len(prefix) + 1 and ids[: len(prefix)] == prefix


class Row:
    """Sequences one after the other, the shared prefix first and once.

    Attributes:
        shared: 1 when the prefix is there, else 0.
        keys: what each piece is known by: the prefix, then the whole sequences.
        lengths: tokens of each piece.
        ends: where each piece ends in the row.
        ids: tokens of the row, [tokens].
        positions: of each within its sequence, [tokens].
        mask: which others a token attends to, [tokens, tokens].
    """

    def __init__(self, sequences: Sequence[tuple[int, ...]], prefix: tuple[int, ...]) -> None:
        skip = len(prefix)
        begin = [begins(ids, prefix) for ids in sequences]
        self.shared = int(any(begin))
        pieces = [ids[skip:] if short else ids for ids, short in zip(sequences, begin, strict=True)]
        starts = [skip if short else 0 for short in begin]
        self.keys = list(sequences)
        if self.shared:
            pieces, starts, self.keys = [prefix, *pieces], [0, *starts], [prefix, *self.keys]
        self.lengths = [len(piece) for piece in pieces]
        self.ends = list(itertools.accumulate(self.lengths))
        self.ids = np.array([ident for piece in pieces for ident in piece], np.int64)
        self.positions = np.concatenate(
            [np.arange(start, start + len(piece)) for piece, start in zip(pieces, starts, strict=True)]
        )
        owner = np.repeat(np.arange(len(pieces)), self.lengths)
        same = owner[:, None] == owner[None, :]
        if self.shared:
            same |= np.repeat(np.array(starts) > 0, self.lengths)[:, None] & (owner == 0)[None, :]
        self.mask = np.tril(same)
