"""Has the gate judge an adapter file: the parent's side of `gate.py`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from appliance.adapters.registry import Registry
from appliance.config import Config
from appliance.files import write_atomic
from appliance.home import Home
from appliance.learning.child import Child, ChildFailed, Limits
from appliance.model.bundle import Bundle

PROGRAM = (sys.executable, "-m", "appliance.learning.gate")
CACHE = "gate-cache.json"
MINUTES = 30.0
"""It takes about one; a box under heavy load gets its chance."""


class Judge:
    """Runs the gate as a child program."""

    def __init__(self, home: Home, config: Config, registry: Registry, bundle: Bundle, child: Child) -> None:
        self._home = home
        self._config = config
        self._registry = registry
        self._bundle = bundle
        self._child = child

    def judge(
        self,
        candidate: Path,
        directory: Path,
        *,
        current: str | None,
        examples: Path | None = None,
        cache: Path | None = None,
        on_step: Callable[[int, int], None] = lambda step, steps: None,
        on_start: Callable[[int], None] = lambda pid: None,
    ) -> dict[str, Any]:
        """The report on `candidate`.

        Args:
            candidate: the file.
            directory: where limits, log and report go.
            current: the adapter to compare with; None for base.
            examples: the run's batch, if a run made it.
            cache: where general measurements are kept; the home's own by default.
            on_step: gets the progress.
            on_start: gets the process id.

        Raises:
            ChildFailed: the gate could not come to a verdict.
            ChildStopped: it was stopped.
            NotFound: `current` is gone.
        """
        limits, out = directory / "gate.json", directory / "report.json"
        out.unlink(missing_ok=True)
        write_atomic(limits, self._config.gate.model_dump_json(indent=1) + "\n")
        cache, threads = cache or self._home.runs / CACHE, str(self._config.train.threads)
        command: list[str | Path] = [*PROGRAM, "--bundle", self._bundle.path, "--adapter", candidate]
        command += ["--limits", limits, "--out", out, "--cache", cache, "--threads", threads]
        if current is not None:
            command += ["--current", self._registry.path(current)]
        if examples is not None:
            command += ["--examples", examples]

        def relay(event: dict[str, Any]) -> None:
            if event.get("event") == "step":
                on_step(int(event["step"]), int(event["steps"]))

        train = self._config.train
        self._child.run(
            [os.fspath(part) for part in command],
            log=directory / "log",
            limits=Limits(train.nice, train.memory_limit_mb, MINUTES * 60),
            on_event=relay,
            on_start=on_start,
        )
        try:
            report = json.loads(out.read_text(encoding="utf-8"))
            if not isinstance(report["passed"], bool):
                raise ValueError("no verdict")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ChildFailed(f"The gate ended without a report ({error}).") from error
        return dict(report)
