"""Merges an adapter into the weights: `W x + B (A x)` is served as `(W + B A) x`, rounded like W.

So an adapter costs nothing while it serves: its graph is the base's, and only some of the weights
differ. It costs a second or two when the session is built, and the rounding error of W once more; the
gate judges the merged weights, for it builds its sessions in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from appliance.adapters.file import Adapter
from appliance.model.bundle import Bundle, Port
from appliance.model.quantize import BLOCK, ZERO

Values = NDArray[np.uint8]
Scales = NDArray[np.float32]

_ELEMENTS = 1 << 17  # weights at a time: few enough to stay in a core's cache from pass to pass


def merge(bundle: Bundle, adapter: Adapter) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """The graph's initializers that the adapter changes, by name.

    Rows of a weight that the adapter leaves alone stay the same to the bit.

    Raises:
        OSError: the bundle's weights cannot be read.
        ValueError: they are cut off; or what the adapter makes of them is not finite.
    """
    for port in bundle.manifest.ports:
        if f"{port.name}.A" in adapter.tensors:
            a, b = adapter.tensors[f"{port.name}.A"], adapter.tensors[f"{port.name}.B"]
            values = bundle.read(port.values, np.uint8)
            scales = bundle.read(port.scales, np.float32)
            _merge(values, scales, a, b, port)
            yield port.values.name, values
            yield port.scales.name, scales


def _merge(
    values: Values, scales: Scales, a: NDArray[np.float32], b: NDArray[np.float32], port: Port
) -> None:
    """Add `(a b)^T` to the quantized weights in place.

    Args:
        values: as `quantize_blocks` gives them, [outputs, blocks, 32].
        scales: likewise, [outputs, blocks].
        a: [inputs, rank].
        b: [rank, outputs].
        port: whose weights they are.
    """
    values, scales = values.reshape(port.outputs, -1, BLOCK), scales.reshape(port.outputs, -1)
    if port.inputs % BLOCK:  # a last block that is not full is padded with zeros
        a = np.pad(a, ((0, values.shape[1] * BLOCK - port.inputs), (0, 0)))
    across = np.ascontiguousarray(a.T)
    changed = np.flatnonzero(b.any(axis=0))
    step = max(1, _ELEMENTS // across.shape[1])
    for start in range(0, len(changed), step):
        rows = changed[start : start + step]
        weights = values[rows].astype(np.float32)
        weights -= ZERO
        weights *= scales[rows][..., None]
        with np.errstate(over="ignore", invalid="ignore"):  # looked for right below
            weights += (b[:, rows].T @ across).reshape(weights.shape)
        scale = np.maximum(weights.max(axis=2), -weights.min(axis=2)) / np.float32(ZERO - 1)
        if not np.isfinite(scale).all():
            raise ValueError(f"its weights at {port.name} are not finite")
        weights /= np.where(scale > 0, scale, 1)[..., None]
        np.rint(weights, out=weights)
        weights += ZERO
        values[rows] = weights
        scales[rows] = scale
