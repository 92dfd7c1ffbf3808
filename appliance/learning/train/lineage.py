"""How a new adapter begins as an earlier one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from appliance.adapters.file import Matrix


def continued(
    fresh: Mapping[str, Matrix], earlier: Mapping[str, Matrix], rank: int, factor: float
) -> dict[str, Matrix]:
    """A fresh adapter that computes what an earlier one does, whose rank may differ.

    A larger rank is cut to the largest singular values; what a smaller one leaves free stays as it is in
    the fresh one, with nothing in B.

    Args:
        fresh: matrices under PEFT's names, A [rank, inputs] and B [outputs, rank].
        earlier: the same of the earlier adapter; layers it lacks stay fresh.
        rank: of the fresh one.
        factor: how much an update counted there, relative to here.
    """
    out = dict(fresh)
    for name_a in [name for name in fresh if name.endswith("lora_A.weight")]:
        name_b = name_a.replace("lora_A", "lora_B")
        if name_a not in earlier or name_b not in earlier:
            continue
        a: Matrix = np.asarray(earlier[name_a], np.float32)
        b: Matrix = np.asarray(earlier[name_b], np.float32) * np.float32(factor)
        if a.shape[0] > rank:
            left, sizes, right = np.linalg.svd(b @ a, full_matrices=False)
            root = np.sqrt(sizes[:rank])
            a, b = root[:, None] * right[:rank], left[:, :rank] * root
        kept = a.shape[0]
        out[name_a] = np.ascontiguousarray(np.concatenate([a, fresh[name_a][kept:]]))
        out[name_b] = np.ascontiguousarray(
            np.concatenate([b, np.zeros_like(fresh[name_b][:, kept:])], axis=1)
        )
    return out
