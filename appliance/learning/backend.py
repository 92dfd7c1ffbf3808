"""Which program trains, and with which Python."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import appliance
from appliance.config import TrainConfig
from appliance.errors import Unavailable

ORT_PYTHON = Path(appliance.__file__).parents[1] / ".venv-ort" / "bin" / "python"
"""Where `make ort` puts the environment of onnxruntime-training. It cannot share one with the ONNX
Runtime that serves, for both are called `onnxruntime`."""


def trainer_program(train: TrainConfig) -> tuple[str, ...]:
    """The command that runs the trainer of the chosen backend, without its arguments.

    Raises:
        Unavailable: its Python is not there.
    """
    if train.backend == "peft":
        return (sys.executable, "-m", "appliance.learning.train.peft")
    python = Path(train.ort_python).expanduser() if train.ort_python else ORT_PYTHON
    if not os.access(python, os.X_OK):
        raise Unavailable(
            f'[train] backend is "ort", but there is no Python at {python}. Run `make ort`, or set '
            "[train] ort_python to the Python of an environment with what requirements/ort.txt lists.",
            param="train.ort_python",
        )
    return (os.fspath(python), "-m", "appliance.learning.train.ort")
