"""How far the run going on is, for whoever wants to know."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from appliance.events import EventBus
from appliance.learning.child import Child
from appliance.learning.estimate import Forecast, Pace

Phase = Literal["preparing", "training", "gating", "canary", "switching"]

_SHARES: dict[Phase, tuple[float, float]] = {
    "preparing": (0.0, 0.02),
    "training": (0.02, 0.8),
    "gating": (0.8, 0.98),
    "canary": (0.98, 0.98),
    "switching": (0.98, 1.0),
}


_DOING: dict[Phase, str] = {
    "preparing": "Choosing the examples",
    "training": "Starting the trainer",
    "gating": "Checking what it learned",
    "canary": "Answering a share of the requests",
    "switching": "Putting it in service",
}
"""What a phase begins with, for people."""

_STAGES: dict[str, tuple[str, float, float]] = {
    "loading": ("Loading the model", 0.0, 0.05),
    "measuring": ("Measuring the model as it is", 0.05, 0.25),
    "steps": ("Learning", 0.25, 0.95),
    "closing": ("Seeing that it keeps what it knew", 0.95, 1.0),
}
"""Of the training, as the trainer names them: for people, and which part of the phase they take."""


@dataclass(frozen=True)
class RunProgress:
    """How far a run is.

    Attributes:
        doing: what it does just now, for people.
        loss: of the last training step.
        fraction: of the whole run, 0 to 1, for a progress bar.
        paused: it stands still, since requests are served first.
        seconds_left: of computing, as far as can be told.
        memory_mb: what the trainer needs at its peak, as far as can be told.
    """

    id: str
    phase: Phase
    doing: str = ""
    step: int = 0
    steps: int = 0
    loss: float | None = None
    fraction: float = 0.0
    paused: bool = False
    seconds_left: float | None = None
    memory_mb: float | None = None


class Tracker:
    """Keeps the progress of one run after the other, and tells every change.

    Attributes:
        now: of the run going on; None when there is none.
    """

    def __init__(self, events: EventBus) -> None:
        self._events = events
        self.now: RunProgress | None = None

    def enter(
        self, run: str, phase: Phase, seconds_left: float | None = None, memory_mb: float | None = None
    ) -> None:
        """The run is at the beginning of a phase."""
        first = _SHARES[phase][0]
        self._say(
            RunProgress(
                run, phase, _DOING[phase], fraction=first, seconds_left=seconds_left, memory_mb=memory_mb
            )
        )

    def stage(
        self,
        name: Any,
        done: Any,
        of: Any,
        steps: int = 0,
        seconds_left: float | None = None,
        memory_mb: float | None = None,
    ) -> None:
        """So much of a part of the training is done that is no step. Nonsense is passed over."""
        if self.now is None or self.now.phase != "training" or name not in _STAGES:
            return
        doing, begin, end = _STAGES[name]
        share = (
            min(max(done / of, 0.0), 1.0) if isinstance(done, int) and isinstance(of, int) and of > 0 else 0.0
        )
        first, last = _SHARES["training"]
        self._say(
            replace(
                self.now,
                doing=doing,
                steps=steps or self.now.steps,
                fraction=first + (last - first) * (begin + (end - begin) * share),
                seconds_left=seconds_left,
                memory_mb=memory_mb,
            )
        )

    def advance(
        self,
        step: Any,
        steps: Any,
        loss: Any = None,
        seconds_left: float | None = None,
        memory_mb: float | None = None,
    ) -> None:
        """So much of the phase is done. A child program says so, and may say nonsense."""
        if self.now is None:
            return
        first, last = _SHARES[self.now.phase]
        done = step / steps if isinstance(step, int) and isinstance(steps, int) and steps > 0 else 0.0
        doing = self.now.doing
        if self.now.phase == "training":
            doing, begin, end = _STAGES["steps"]
            done = begin + (end - begin) * min(done, 1.0)
        self._say(
            replace(
                self.now,
                doing=doing,
                step=step if isinstance(step, int) else 0,
                steps=steps if isinstance(steps, int) else 0,
                loss=float(loss) if isinstance(loss, int | float) else None,
                fraction=first + (last - first) * min(done, 1.0),
                seconds_left=seconds_left,
                memory_mb=memory_mb,
            )
        )

    def pause(self, paused: bool) -> None:
        """It stands still from now on, or goes on."""
        if self.now is not None:
            self._say(replace(self.now, paused=paused))

    def leave(self) -> None:
        """No run is going on any more."""
        self.now = None

    def _say(self, progress: RunProgress) -> None:
        self.now = progress
        data = asdict(progress)
        self._events.publish("run.progress", run=data.pop("id"), **data)


class Watch:
    """Makes progress and metrics of what a trainer says, with what is known of earlier runs."""

    def __init__(self, tracker: Tracker, child: Child, known: Pace | None, examples: int) -> None:
        self._tracker = tracker
        self._child = child
        self._known = known
        self._examples = examples
        self._forecast = Forecast(known, examples)
        self._planned: float | None = None
        self._steps = 0
        self._metrics: dict[str, Any] = {}

    def begin(self, run: str) -> None:
        """Before the trainer has said anything."""
        expected = self._known.estimate(self._examples) if self._known else None
        if expected is None:
            self._tracker.enter(run, "training")
        else:
            self._tracker.enter(run, "training", expected.seconds, expected.memory_mb)

    def hear(self, event: dict[str, Any]) -> None:
        """Take in a line."""
        computed = self._child.seconds
        step, steps = event.get("step", 0), event.get("steps")
        match event.get("event"):
            case "stage":
                # Of a run that goes on from a checkpoint, the steps that were done are behind it.
                left = self._forecast.train(
                    0 if event.get("stage") != "closing" else self._steps, self._steps, computed
                )
                done, of = event.get("done", 0), event.get("of", 0)
                self._tracker.stage(event.get("stage"), done, of, self._steps, left, self._memory())
                return
            case "start":
                self._planned = computed
                self._metrics["steps"] = steps
                self._steps = steps if isinstance(steps, int) else 0
                if "tokens" in event:
                    self._metrics |= {"trained": event["examples"], "startup_seconds": round(computed, 1)}
                    self._metrics |= {name: event[name] for name in ("tokens", "rehearsal")}
                self._forecast.plan(event.get("tokens"), computed)
                left = self._forecast.train(0, self._steps, computed)
                self._tracker.stage("measuring", 0, 1, self._steps, left, self._memory())
                return
            case "step":
                self._metrics["loss"] = event.get("loss")
            case "stopped":
                self._metrics["stopped"] = step
            case "resumed":
                pass
            case "done":
                self._metrics |= {name: value for name, value in event.items() if name != "event"}
                return
            case _:
                return
        if isinstance(step, int) and isinstance(steps, int):
            left = self._forecast.train(step, steps, computed)
            self._tracker.advance(step, steps, event.get("loss"), left, self._memory())

    def _memory(self) -> float | None:
        return round(max(self._child.peak_mb, self._known.memory_mb if self._known else 0.0)) or None

    def metrics(self) -> dict[str, Any]:
        """What to keep of a training that ran through."""
        if self._planned is not None and "tokens" in self._metrics:
            self._metrics["train_seconds"] = round(self._child.seconds - self._planned, 1)
        return self._metrics
