"""What keeps the adapter from changing ordinary text, without running any.

A linear layer turns its input x into Wx, and with the adapter into (W + BA)x. What that changes of
ordinary text is, on average over its tokens, the trace of (BA) C (BA)^T with C the second moments of the
layer's inputs there. It costs a few small products a step however much text C was measured on, and it
leaves the adapter free where ordinary text has nothing.

This is elastic weight consolidation (Kirkpatrick et al. 2017) in the Kronecker form of Ritter et al.
(2018), with one number for the output side: what counts is the change against the layer's output.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from appliance.adapters.file import Matrix

DIRECTIONS = 128  # in which a layer's inputs are known; for the rest their mean size is
ITERATIONS = 4
SAME_INPUT = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
"""Linear modules that are given what another one of their layer is given."""


def measured(module: str) -> str:
    """The module, by its name in the checkpoint, whose inputs are also those of this one."""
    place, _, name = module.rpartition(".")
    return f"{place}.{SAME_INPUT.get(name, name)}"


@dataclass(frozen=True, eq=False)
class Moments:
    """Second moments of a layer's inputs, nearly: `main^T main + rest * identity`.

    Attributes:
        main: [directions, inputs].
        rest: mean square of an input in a direction that `main` does not hold.
    """

    main: Matrix
    rest: float

    @classmethod
    def of(cls, total: Matrix, count: int) -> Moments:
        """From the sum of x x^T over `count` inputs, [inputs, inputs]."""
        whole = total / np.float32(count)
        width = len(whole)
        rank = min(DIRECTIONS, width // 2)
        # Subspace iteration: all eigenvectors of a wide layer would take a second each.
        basis: Matrix = np.random.default_rng(0).standard_normal((width, rank)).astype(np.float32)
        for _ in range(ITERATIONS):
            basis = np.linalg.qr(whole @ basis)[0]
        sizes, turn = np.linalg.eigh(basis.T @ whole @ basis)
        rest = max(float(np.trace(whole) - sizes.sum()), 0.0) / (width - rank)
        roots = np.sqrt(np.maximum(sizes - rest, 0))
        return cls(np.ascontiguousarray((basis @ turn * roots).T), rest)

    def output(self, weight: Matrix) -> float:
        """Mean square length of `weight x`, with `weight` [outputs, inputs]."""
        return float(np.square(weight @ self.main.T).sum() + self.rest * np.square(weight).sum())
