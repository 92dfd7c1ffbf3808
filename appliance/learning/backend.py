"""Which program trains, and with which Python."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

import appliance
from appliance.errors import Unavailable
from appliance.learning.train.llama import Llama
from appliance.model.bundle import Bundle
from appliance.sections import TrainConfig

ORT_PYTHON = Path(appliance.__file__).parents[1] / ".venv-ort" / "bin" / "python"
"""Where `make ort` puts the environment of onnxruntime-training. It cannot share one with the ONNX
Runtime that serves, for both are called `onnxruntime`."""


def decided(train: TrainConfig, bundle: Bundle) -> TrainConfig:
    """The settings with the backend that `auto` stands for on this box and with this model."""
    if train.backend != "auto":
        return train
    ort = os.access(_ort_python(train), os.X_OK) and _ort_knows(bundle)
    return train.model_copy(update={"backend": "ort" if ort else "peft"})


def trainer_program(train: TrainConfig) -> tuple[str, ...]:
    """The command that runs the trainer of a decided backend, without its arguments.

    Raises:
        Unavailable: its Python or libraries are not there.
    """
    if train.backend == "peft":
        if importlib.util.find_spec("peft") is None:
            raise Unavailable(
                "There is nothing to train with: install requirements/train.txt, or run `make ort`; in a "
                "container, take the image with training. Examples are kept until then.",
                param="train.backend",
            )
        return (sys.executable, "-m", "appliance.learning.train.peft")
    python = _ort_python(train)
    if not os.access(python, os.X_OK):
        raise Unavailable(
            f'[train] backend is "ort", but there is no Python at {python}. Run `make ort`, or set '
            "[train] ort_python to the Python of an environment with what requirements/ort.txt lists.",
            param="train.ort_python",
        )
    return (os.fspath(python), "-m", "appliance.learning.train.ort")


def _ort_python(train: TrainConfig) -> Path:
    return Path(train.ort_python).expanduser() if train.ort_python else ORT_PYTHON


def _ort_knows(bundle: Bundle) -> bool:
    try:
        Llama.of(json.loads((bundle.path / "config.json").read_text(encoding="utf-8")))
    except (KeyError, ValueError):
        return False
    return True
