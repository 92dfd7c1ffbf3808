"""The prefix cache: keys and values of beginnings that were computed before.

Sequences are kept in blocks of `BLOCK` tokens. A block is known by the weights that computed it, by whom it
was computed for and by all tokens up to its end. So it is found again by the same client when it begins
alike, and never by anyone served by other weights, nor by another client: who gets an answer sooner because
another asked the same has learned what that one asked, and may try all that it can have been. Nothing is
shared, not even what the box itself puts before a conversation: with most models that is less than a block.

Because a token's entries do not depend on how the sequence was cut into steps (see `session.py`), what is
copied from here is what would have been computed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from appliance.engine.cache import KVCache

BLOCK = 32
_NO_PARENT = 0


@dataclass(frozen=True, eq=False)
class Block:
    """A block's identity for those that follow it, and its entries [layer * 2, heads, BLOCK, head_dim]."""

    ident: int
    entries: NDArray[np.float32]


Key = tuple[str, int, tuple[int, ...], str]
"""Weights, the block before, the block's own tokens, and the client."""


class PrefixCache:
    """Blocks up to a limit of memory; those that were not used for longest go first."""

    def __init__(self, cache: KVCache, limit_bytes: int) -> None:
        self._cache = cache
        layers, (_, heads, _, width) = len(cache.buffers), cache.buffers[0].shape
        self._shape = (layers, heads, BLOCK, width)
        self._limit = limit_bytes // (4 * layers * heads * BLOCK * width)
        self._blocks: OrderedDict[Key, Block] = OrderedDict()
        self._last_ident = _NO_PARENT

    @property
    def nbytes(self) -> int:
        """Memory the blocks take."""
        return len(self._blocks) * 4 * int(np.prod(self._shape))

    def key(
        self, weights: str, parent: int, tokens: Sequence[int], start: int, client: str = ""
    ) -> Key | None:
        """What the block of `tokens` at `start` is known by to a client; None when it is not whole."""
        block = tuple(tokens[start : start + BLOCK])
        return (weights, parent, block, client) if len(block) == BLOCK else None

    def restore(self, row: int, at: int, key: Key) -> int | None:
        """Copy a block into a row, if it is here.

        Args:
            row: of the KV cache.
            at: tokens the row holds already.
            key: the block's.

        Returns:
            The block's identity, or None.
        """
        block = self._blocks.get(key)
        if block is None:
            return None
        self._blocks.move_to_end(key)
        for buffer, entries in zip(self._cache.buffers, block.entries, strict=True):
            buffer[row, :, at : at + BLOCK] = entries
        return block.ident

    def keep(self, row: int, at: int, key: Key) -> int:
        """Copy a block out of a row, unless it is here already; returns its identity."""
        known = self._blocks.get(key)
        if known is not None:
            self._blocks.move_to_end(key)
            return known.ident
        if self._limit < 1:
            return _NO_PARENT
        entries = np.empty(self._shape, np.float32)
        for buffer, own in zip(self._cache.buffers, entries, strict=True):
            own[:] = buffer[row, :, at : at + BLOCK]
        # Identities are never used again: children of a block that went are not found any more, and go
        # in their turn.
        self._last_ident += 1
        self._blocks[key] = Block(self._last_ident, entries)
        while len(self._blocks) > self._limit:
            self._blocks.popitem(last=False)
        return self._last_ident
