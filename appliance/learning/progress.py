"""How far the run going on is, for whoever wants to know."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from appliance.events import EventBus

Phase = Literal["preparing", "training", "gating", "switching"]

_SHARES: dict[Phase, tuple[float, float]] = {
    "preparing": (0.0, 0.0),
    "training": (0.0, 0.8),
    "gating": (0.8, 0.98),
    "switching": (0.98, 1.0),
}


@dataclass(frozen=True)
class RunProgress:
    """How far a run is.

    Attributes:
        loss: of the last training step.
        fraction: of the whole run, 0 to 1, for a progress bar.
        paused: it stands still, since requests are served first.
    """

    id: str
    phase: Phase
    step: int = 0
    steps: int = 0
    loss: float | None = None
    fraction: float = 0.0
    paused: bool = False


class Tracker:
    """Keeps the progress of one run after the other, and tells every change.

    Attributes:
        now: of the run going on; None when there is none.
    """

    def __init__(self, events: EventBus) -> None:
        self._events = events
        self.now: RunProgress | None = None

    def enter(self, run: str, phase: Phase) -> None:
        """The run is at the beginning of a phase."""
        self._say(RunProgress(run, phase, fraction=_SHARES[phase][0]))

    def advance(self, step: Any, steps: Any, loss: Any = None) -> None:
        """So much of the phase is done. A child program says so, and may say nonsense."""
        if self.now is None:
            return
        first, last = _SHARES[self.now.phase]
        done = step / steps if isinstance(step, int) and isinstance(steps, int) and steps > 0 else 0.0
        self._say(
            replace(
                self.now,
                step=step if isinstance(step, int) else 0,
                steps=steps if isinstance(steps, int) else 0,
                loss=float(loss) if isinstance(loss, int | float) else None,
                fraction=first + (last - first) * min(done, 1.0),
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
