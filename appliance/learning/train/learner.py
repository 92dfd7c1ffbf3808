"""What the recipe asks of a backend: a model with an adapter that can be judged and trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from appliance.adapters.file import Matrix
from appliance.learning.train.data import Tokens
from appliance.learning.train.loss import Terms

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
BETAS = (0.9, 0.98)
EPSILON = 1e-8
CLIP = 1.0


class Judged(NamedTuple):
    """What the model makes of a sequence's answer.

    Attributes:
        logp: log probabilities of its tokens, [answer].
        hidden: last hidden states that predict them, [answer, width].
    """

    logp: npt.NDArray[np.float32]
    hidden: Matrix


class Learner(Protocol):
    """One adapter in training. Its optimizer is AdamW with `BETAS`, `EPSILON`, no weight decay, and gradients
    clipped at the norm `CLIP`.
    """

    def size(self, item: Tokens) -> int:
        """Tokens that the sequence adds to a row."""

    def prepare(self, items: Sequence[Tokens]) -> None:
        """Told once which sequences there will be: what is needed for others only can go."""

    def anchor(self, ordinary: Sequence[Tokens], weight: float) -> None:
        """From now on, learn also not to move what the linear layers make of these sequences.

        Each step's loss gets, over all of them, the sum of the squared change of their output as a share of
        that output, times `weight`; see `anchor.py`. Told once, before the first step.
        """

    def base(self) -> AbstractContextManager[None]:
        """Within it the adapter is off."""

    def judge(self, batch: Sequence[Tokens]) -> list[Judged]:
        """What the model makes of each."""

    def learn(self, batch: Sequence[Tokens], terms: Terms, rate: float) -> float:
        """One step of the optimizer; the loss before it.

        Raises:
            ArithmeticError: the loss is not finite, and nothing was changed.
        """

    def scale(self, factor: float) -> None:
        """Multiply the whole update by `factor`."""

    def adapter(self) -> dict[str, Matrix]:
        """The adapter's weights under their PEFT names."""

    def start_from(self, tensors: Mapping[str, Matrix], scale: float) -> None:
        """Take over an earlier adapter whose update counts `scale`; its rank may differ."""

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """All that steps have changed, to go on from with `restore`."""

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Be as when `state` was taken."""
