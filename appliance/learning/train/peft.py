"""The trainer on torch and PEFT: `python -m appliance.learning.train.peft`, see `program.py`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from appliance.adapters.file import Matrix
from appliance.learning.train.peft_learner import PeftLearner
from appliance.learning.train.program import main
from appliance.logs import configure_child
from appliance.sections import TrainConfig


def build(
    settings: TrainConfig,
    threads: int,
    config: Mapping[str, Any],
    weights: dict[str, Matrix],
    prefix: Sequence[int],
) -> PeftLearner:
    """The model under training; the same seed gives the same adapter, bit for bit."""
    torch.set_num_threads(threads)
    torch.manual_seed(settings.seed)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return PeftLearner(
        config, weights, rank=settings.rank, alpha=settings.alpha, layers=settings.layers, prefix=prefix
    )


if __name__ == "__main__":
    configure_child()
    sys.exit(main(build))
