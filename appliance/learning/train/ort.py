"""The trainer on onnxruntime-training, without torch: `python -m appliance.learning.train.ort`.

See `program.py`. It runs in an environment of its own, `requirements/ort.txt`, as that library and the
ONNX Runtime that serves go by the same name.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from appliance.adapters.file import Matrix
from appliance.learning.train.ort_learner import OrtLearner
from appliance.learning.train.program import main
from appliance.logs import configure_child
from appliance.sections import TrainConfig


def build(
    settings: TrainConfig,
    threads: int,
    config: Mapping[str, Any],
    weights: dict[str, Matrix],
    prefix: Sequence[int],
) -> OrtLearner:
    """The model under training; the same seed gives the same adapter, bit for bit."""
    return OrtLearner(
        config,
        weights,
        rank=settings.rank,
        alpha=settings.alpha,
        layers=settings.layers,
        prefix=prefix,
        seed=settings.seed,
        threads=threads,
    )


if __name__ == "__main__":
    configure_child()
    sys.exit(main(build))
