"""The key/value cache: one row per slot, written in place by the session."""

from __future__ import annotations

import mmap

import numpy as np
from numpy.typing import NDArray

from appliance.model.bundle import Manifest

PAGE_TOKENS = 16  # a row's size in tokens is a multiple of this, so that rows start on memory pages


class KVCache:
    """Buffers [rows, kv_heads, capacity, head_dim] of float32, two per layer (key, value).

    Pages are committed by the kernel when first written, so a long context costs address space, not
    memory. Huge pages are refused: with them one token would commit 2 MB per head.

    Attributes:
        rows: number of sequences held at the same time.
        capacity: longest sequence of a row, in tokens.
    """

    def __init__(self, manifest: Manifest, rows: int, capacity: int) -> None:
        self.rows = rows
        self.capacity = -(-capacity // PAGE_TOKENS) * PAGE_TOKENS
        shape = (rows, manifest.kv_heads, self.capacity, manifest.head_dim)
        self._row_bytes = manifest.kv_heads * self.capacity * manifest.head_dim * 4
        self._maps = [_anonymous(rows * self._row_bytes) for _ in range(2 * manifest.layers)]
        self.buffers: list[NDArray[np.float32]] = [
            np.frombuffer(memory, np.float32).reshape(shape) for memory in self._maps
        ]

    def release(self, row: int) -> None:
        """Give a finished row's memory back to the system (its content becomes zeros)."""
        start = row * self._row_bytes
        if start % mmap.PAGESIZE or self._row_bytes % mmap.PAGESIZE:
            return
        for memory in self._maps:
            memory.madvise(mmap.MADV_DONTNEED, start, self._row_bytes)


def _anonymous(size: int) -> mmap.mmap:
    memory = mmap.mmap(-1, size)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return memory
