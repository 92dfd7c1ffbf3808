"""How long a run takes and how much memory it needs, told from earlier runs on this box.

All times are of computing; what a run stands still for requests comes on top.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from appliance.sections import TrainConfig
from appliance.store.runs import Run

RECENT = 5
"""Runs that count: the box may be in another state by now than long ago."""
_PARTIAL = frozenset({"resumed", "parts", "stopped"})
"""Metrics of a run whose figures are not those of a whole training."""
FIRST_STEPS = 5
"""Steps of a run after which its own speed is believed."""
GATE_SECONDS = 60.0
"""Of the gate, until one has been timed."""


@dataclass(frozen=True)
class Estimate:
    """What a run will take.

    Attributes:
        seconds: of computing, gate included.
        memory_mb: the trainer's at its peak.
    """

    seconds: float
    memory_mb: float


@dataclass(frozen=True)
class Pace:
    """How earlier runs of the same recipe went, on average.

    Attributes:
        startup: seconds until the trainer has planned.
        rehearsal: tokens that each run trains on besides its examples.
        per_example: tokens trained for each example.
        per_token: seconds a token, with all that is done besides the steps.
        gate: seconds of the gate.
        memory_mb: the largest peak among them.
    """

    startup: float
    rehearsal: float
    per_example: float
    per_token: float
    gate: float
    memory_mb: float

    def estimate(self, examples: int) -> Estimate:
        """Of a run on so many examples."""
        tokens = self.rehearsal + self.per_example * examples
        return Estimate(self.startup + self.per_token * tokens + self.gate, self.memory_mb)


def recipe(settings: TrainConfig, base_hash: str) -> str:
    """What must be alike for runs to be comparable, as text."""
    size = (settings.rank, settings.layers, settings.batch_tokens, settings.max_tokens)
    return " ".join(str(part) for part in (base_hash[:12], settings.backend, *size, settings.threads))


def pace(runs: Sequence[Run], kind: str) -> Pace | None:
    """What runs, newest first, tell about the recipe `kind`; None when there was none that ran through."""
    timed = [
        run.metrics for run in runs if run.metrics and {"train_seconds", "peak_mb"} <= run.metrics.keys()
    ]
    # One that went on from a checkpoint trained a part of its tokens in an earlier life; one that stopped
    # early, not all.
    timed = [m for m in timed if m.get("recipe") == kind and not _PARTIAL & m.keys()][:RECENT]
    if not timed:
        return None

    def average(number: str) -> float:
        return mean(float(metrics[number]) for metrics in timed)

    examples = sum(metrics["trained"] for metrics in timed)
    return Pace(
        startup=average("startup_seconds"),
        rehearsal=average("rehearsal"),
        per_example=sum(metrics["tokens"] - metrics["rehearsal"] for metrics in timed) / max(examples, 1),
        per_token=average("train_seconds") / max(average("tokens"), 1),
        gate=gate_seconds(runs),
        memory_mb=max(float(metrics["peak_mb"]) for metrics in timed),
    )


def gate_seconds(runs: Sequence[Run]) -> float:
    """How long the gate takes, by what runs, newest first, tell."""
    timed = [run.metrics["gate_seconds"] for run in runs if run.metrics and "gate_seconds" in run.metrics]
    return mean(timed[:RECENT]) if timed else GATE_SECONDS


class Forecast:
    """What is left of the run going on: at first by its pace, after some steps by its own speed."""

    def __init__(self, known: Pace | None, examples: int) -> None:
        self._pace = known
        self._gate = known.gate if known else GATE_SECONDS
        self._whole = known.estimate(examples).seconds - known.gate if known else None
        self._first: tuple[int, float] | None = None
        self._per_step: float | None = None

    def plan(self, tokens: Any, computed: float) -> None:
        """The trainer has planned so many tokens, after so many seconds of computing."""
        if self._pace is not None and isinstance(tokens, int):
            self._whole = computed + self._pace.per_token * tokens

    def train(self, step: int, steps: int, computed: float) -> float | None:
        """Seconds left, after so many steps and seconds of computing; None while nothing can be told."""
        if step and self._first is None:
            self._first = (step, computed)
        if self._first is not None and step - self._first[0] >= FIRST_STEPS:
            self._per_step = (computed - self._first[1]) / (step - self._first[0])
        if self._per_step is not None:
            return self._per_step * (steps - step) + self._gate
        return None if self._whole is None else max(self._whole - computed, 0.0) + self._gate
