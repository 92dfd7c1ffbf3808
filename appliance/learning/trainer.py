"""Has the trainer program make an adapter: the parent's side of `train/`.

A trainer that is killed goes on from its checkpoint, at once and in the same run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from appliance.files import write_atomic
from appliance.learning.backend import trainer_program
from appliance.learning.child import Child, ChildFailed, ChildKilled, Limits
from appliance.learning.train import checkpoint
from appliance.model.bundle import Bundle
from appliance.sections import TrainConfig

EXAMPLES, CANDIDATE, SETTINGS = "examples.jsonl", "candidate.safetensors", "train.json"
METRICS, LOG = "metrics.jsonl", "log"


class Trainer:
    """Runs the trainer on a run's directory."""

    def __init__(self, program: Sequence[str] | None, bundle: Bundle, child: Child) -> None:
        self._program = program
        self._bundle = bundle
        self._child = child

    def train(
        self,
        run: str,
        directory: Path,
        parent: Path | None,
        *,
        on_event: Callable[[dict[str, Any]], None],
        on_start: Callable[[int], None],
        go_on: Callable[[int], bool],
    ) -> None:
        """Train on the frozen batch in `directory` with the settings there, into its candidate file.

        Args:
            run: the run's id.
            directory: has been through `prepare`, and perhaps holds a checkpoint.
            parent: the adapter to start from.
            on_event: gets what the trainer says.
            on_start: gets its process id.
            go_on: asked with the steps done whether a trainer that was killed is started again.

        Raises:
            ChildFailed: it failed, or was killed for good.
            ChildStopped: it was stopped.
        """
        settings = load_settings(directory)
        command: list[str | Path] = [
            *(self._program or trainer_program(settings)),
            "--bundle",
            self._bundle.path,
        ]
        command += ["--examples", directory / EXAMPLES, "--out", directory / CANDIDATE]
        command += ["--metrics", directory / METRICS, "--settings", directory / SETTINGS]
        command += ["--run", run, "--checkpoint", directory / checkpoint.NAME]
        if parent is not None:
            command += ["--parent", parent]
        limits = Limits(settings.nice, settings.memory_limit_mb, settings.time_limit_minutes * 60)
        used = 0.0
        while True:
            try:
                self._child.run(
                    [os.fspath(part) for part in command],
                    log=directory / LOG,
                    limits=limits,
                    on_event=on_event,
                    on_start=on_start,
                    used=used,
                )
            except ChildKilled:
                if not go_on(checkpoint.steps_done(directory / checkpoint.NAME)):
                    raise
                used += self._child.seconds
            else:
                break
        if not (directory / CANDIDATE).is_file():
            raise ChildFailed("The trainer ended without writing an adapter.")


def prepare(directory: Path, settings: TrainConfig) -> None:
    """Write the settings beside the frozen batch; from here on the run can be taken up again."""
    write_atomic(directory / SETTINGS, settings.model_dump_json(indent=1) + "\n")


def load_settings(directory: Path) -> TrainConfig:
    """The settings that a run was prepared with; they held then, whatever bounds there are by now."""
    return TrainConfig.model_construct(**json.loads((directory / SETTINGS).read_text(encoding="utf-8")))


def discard(directory: Path) -> None:
    """Remove what a run that has ended no longer needs: learned weights do not lie about."""
    checkpoint.remove(directory / checkpoint.NAME)
    (directory / CANDIDATE).unlink(missing_ok=True)
