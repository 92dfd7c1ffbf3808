"""Rounding weights to 8 bits in blocks of 32, each block with one scale.

The runtime computes fast with symmetric blocks (w = scale * q, q from -128 to 127). Plain rounding
with scale = largest / 127 is right for weights that were never rounded before. The weights of a 4-bit
file were: each of their blocks holds 16 evenly spaced values at most, w = step * n + offset. A scale
that divides the step then puts all of them on the finer grid at once, and only the offset is rounded;
among the divisors that fit, the one that rounds the offset least is taken.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

BITS = 8
BLOCK = 32
ZERO = 128
_LEVELS = 15  # steps between the least and the greatest value of a 4-bit block
_DIVISORS = range(1, 18)  # 255 // 15
_ON_GRID = 0.02  # share of a step; what is left of the offset after 16-bit arithmetic
_ROWS = 4096  # rows at a time: bounds the memory


def quantize_blocks(
    weights: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Quantize [rows, width] along its width.

    Returns:
        Values [rows, blocks, 32], with 128 for zero, and scales [rows, blocks]. A last block that is
        not full is padded with zeros.
    """
    rows, width = weights.shape
    blocks = -(-width // BLOCK)
    packed = np.empty((rows, blocks, BLOCK), np.uint8)
    scales = np.empty((rows, blocks), np.float32)
    for start in range(0, rows, _ROWS):
        part = np.zeros((min(_ROWS, rows - start), blocks * BLOCK), np.float32)
        part[:, :width] = weights[start : start + _ROWS]
        part = part.reshape(-1, blocks, BLOCK)
        scale = _scales(part)
        values = np.rint(part / np.where(scale > 0, scale, 1)[..., None])
        packed[start : start + _ROWS] = np.clip(values, -ZERO, ZERO - 1) + ZERO
        scales[start : start + _ROWS] = scale
    return packed, scales


def dequantize_blocks(
    packed: npt.NDArray[Any], scales: npt.NDArray[Any], width: int
) -> npt.NDArray[np.float32]:
    """The weights [rows, width] that quantized ones stand for; the padding may be gone already."""
    rows = packed.shape[0]
    packed, scales = packed.reshape(rows, -1), scales.reshape(rows, -1)
    weights = np.empty((rows, width), np.float32)
    for start in range(0, rows, _ROWS):  # a few rows at a time: an embedding is large, and so are its copies
        part = packed[start : start + _ROWS, :width].astype(np.float32)
        part -= ZERO
        part *= np.repeat(scales[start : start + _ROWS], BLOCK, axis=1)[:, :width]
        weights[start : start + _ROWS] = part
    return weights


def _scales(part: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The scale of each block of [rows, blocks, 32]."""
    low, high = part.min(axis=2), part.max(axis=2)
    plain = np.maximum(high, -low) / (ZERO - 1)
    step = (high - low) / _LEVELS
    safe = np.where(step > 0, step, 1)
    level = (part - low[..., None]) / safe[..., None]
    on_grid = (np.abs(level - np.rint(level)).max(axis=2) < _ON_GRID) & (step > 0)
    best = plain
    least = np.where(on_grid, np.inf, -np.inf).astype(np.float32)
    for divisor in _DIVISORS:
        scale = safe / divisor
        first = np.rint(low / scale)
        error = np.abs(low - first * scale)
        fits = (first >= -ZERO) & (first + _LEVELS * divisor <= ZERO - 1)
        better = fits & (error < least)
        best = np.where(better, scale, best)
        least = np.where(better, error, least)
    scales: npt.NDArray[np.float32] = best.astype(np.float32)
    return scales
