"""The terms of the training loss. Each takes hidden states of answer positions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def answer_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean negative log probability of the answer's tokens."""
    return functional.cross_entropy(logits, targets)


def drift(logits: Tensor, reference: Tensor) -> Tensor:
    """Mean KL divergence per token from the reference model's distribution to ours."""
    before = reference.log_softmax(-1)
    return functional.kl_div(logits.log_softmax(-1), before, log_target=True, reduction="batchmean")


def rejection(logits: Tensor, targets: Tensor, start: Tensor, margin: float) -> Tensor:
    """How far the rejected answer is from having lost `margin` nats a token since the start.

    Zero once it has: pushing further down would only damage the language around it.

    Args:
        logits: at the positions where the rejected answer leaves the right one.
        targets: the rejected tokens there.
        start: their log probabilities before training.
        margin: nats per token they shall lose.
    """
    now = torch.gather(logits.log_softmax(-1), 1, targets[:, None])[:, 0]
    return functional.relu(now - start + margin).mean()
