from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from appliance.model.quantize import dequantize_blocks, quantize_blocks

Matrix = NDArray[np.float32]


def error(weights: Matrix) -> float:
    packed, scales = quantize_blocks(weights)
    assert packed.shape == (*scales.shape, 32)
    return float(np.abs(dequantize_blocks(packed, scales, weights.shape[1]) - weights).max())


@pytest.mark.parametrize("width", [1, 31, 32, 33, 96])
def test_no_weight_is_off_by_more_than_half_a_step(width: int) -> None:
    weights = np.random.default_rng(0).standard_normal((50, width)).astype(np.float32)
    assert error(weights) <= np.abs(weights).max() / 127 / 2 * 1.001


def test_eight_bit_sources_are_kept_exactly() -> None:
    random = np.random.default_rng(1)
    values = random.integers(-127, 128, (20, 4, 32)).astype(np.float32)
    values[..., 0] = 127
    scales = random.uniform(0.001, 0.1, (20, 4, 1)).astype(np.float16).astype(np.float32)
    weights = (values * scales).reshape(20, 128)
    assert error(weights) < 1e-6


def test_four_bit_sources_are_rounded_finer_than_plainly() -> None:
    random = np.random.default_rng(2)
    levels = random.integers(0, 16, (400, 4, 32)).astype(np.float32)
    levels[..., 0], levels[..., 1] = 0, 15
    step = random.uniform(0.01, 0.1, (400, 4, 1)).astype(np.float16).astype(np.float32)
    offset = -step * random.uniform(5, 10, (400, 4, 1)).astype(np.float32)
    weights = (levels * step + offset).astype(np.float32)
    packed, scales = quantize_blocks(weights.reshape(400, 128))
    mine = dequantize_blocks(packed, scales, 128).reshape(weights.shape) - weights
    plain_scale = np.abs(weights).max(axis=2, keepdims=True) / 127
    plain = np.rint(weights / plain_scale) * plain_scale - weights
    assert np.square(mine).mean() < 0.4 * np.square(plain).mean()


def test_zeros_and_single_values() -> None:
    assert error(np.zeros((3, 64), np.float32)) == 0
    assert error(np.full((3, 64), 0.7, np.float32)) < 1e-6
    assert error(np.full((3, 64), -1e-30, np.float32)) < 1e-30
