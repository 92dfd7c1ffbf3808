"""The state of a training that may be cut off at any moment: one file, whole or not at all.

Without torch, for the daemon asks it how far a run had come, and any backend may write one.
"""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from appliance.errors import StorageFull
from appliance.failpoints import failpoint
from appliance.files import publish_file, remove_durably

logger = logging.getLogger(__name__)

NAME = "checkpoint.safetensors"
MAX_COST = 0.05
"""Share of the time that writing may take: a slow card gets fewer checkpoints."""

State = dict[str, npt.NDArray[Any]]


class Checkpoint:
    """The file of one run. It is valid for exactly what it was made from."""

    def __init__(self, path: Path, every: float) -> None:
        """`every`: seconds from one to the next; 0 for one at each opportunity."""
        self._path = path
        self._every = every
        self._digest = hashlib.sha256()
        self._next = time.monotonic() + every
        self._stepping = self._last = False

    def bind(self, *parts: bytes) -> None:
        """Make it valid only for these: all that the state depends on."""
        for part in parts:
            self._digest.update(len(part).to_bytes(8, "big") + part)

    def load(self) -> tuple[int, State] | None:
        """Steps done and the state after them; None without a file, or when it is of something else."""
        self._stepping = True
        try:
            with safe_open(self._path, framework="np") as file:
                meta = file.metadata() or {}
                if meta.get("of") != self._digest.hexdigest():
                    logger.warning("%s is of another training; it is ignored", self._path.name)
                    return None
                return int(meta["step"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            logger.warning("%s cannot be read; it is ignored: %s", self._path.name, error)
            return None

    def due(self) -> bool:
        """Whether it is time for the next."""
        return self._last or time.monotonic() >= self._next

    def end_with_one(self) -> None:
        """From now on SIGTERM ends this process with the step under way, and one more of them."""
        signal.signal(signal.SIGTERM, self._end)

    def _end(self, number: int, frame: FrameType | None) -> None:
        self._last = True
        if not self._stepping:  # nothing is lost that the next life does not have to do again anyway
            _die()

    def save(self, step: int, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Replace the file. A full disk leaves the earlier one, and training goes on."""
        began = time.monotonic()
        # One name for the unfinished file, so that many kills leave no more than one.
        temp = _unfinished(self._path)
        try:
            meta = {"of": self._digest.hexdigest(), "step": str(step)}
            save_file({name: np.asarray(array, order="C") for name, array in state.items()}, temp, meta)
            failpoint("train.checkpoint")
            publish_file(temp, self._path)
            failpoint("train.checkpointed")
        except (SafetensorError, OSError, StorageFull) as error:
            logger.warning("No checkpoint at step %d: %s", step, error)
            temp.unlink(missing_ok=True)
        now = time.monotonic()
        self._next = now + max(self._every, (now - began) / MAX_COST if self._every else 0)
        if self._last:
            _die()

    def done(self) -> None:
        """There are no more steps."""
        self._stepping = False
        if self._last:
            _die()


def steps_done(path: Path) -> int:
    """How far the training of that checkpoint had come; 0 without one."""
    try:
        with safe_open(path, framework="np") as file:
            return int((file.metadata() or {})["step"])
    except (SafetensorError, OSError, ValueError, KeyError):
        return 0


def remove(path: Path) -> None:
    """Remove a checkpoint, and what a kill left half written."""
    for file in (path, _unfinished(path)):
        if os.path.lexists(file):
            remove_durably(file)


def _die() -> None:
    """By that signal, as if nobody had caught it."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}")
