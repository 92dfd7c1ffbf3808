"""How the loss of a run goes: read from its `metrics.jsonl`, which grows while it trains.

Whoever follows a run asks again and again. Only what has been added since is read, so that the work does
not grow with the file.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

POINTS = 300
"""Points given of a line; more could not be told apart."""
MOST_STEPS = 20_000
"""Steps kept at most of a run: of a longer one, each second or fourth."""
MOST_BYTES = 8 << 20
"""Read at a time; the rest is for the next time."""

Line: TypeAlias = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Losses:
    """What a run has measured so far: points of step and loss, by rising step.

    Attributes:
        training: of training; nan where a step had none.
        heldout: of the examples kept out of training; from before the first step to after the last once
            the run has told these.
        each: so many steps make one point of `training`: their mean.
    """

    training: Line
    heldout: Line
    each: int


def read_losses(path: Path) -> Losses | None:
    """What the file says; None when there is none (any more).

    A line that is cut off or makes no sense is passed over. Of steps that were done again, after the
    trainer was killed and started anew, the last try counts.
    """
    return _reader(path).read()


def smoothed(line: Line, over: float = 10.0) -> Line:
    """The line with each value the mean of those so far, of which about the last `over` count.

    A step's loss is that of a few sequences, of which some teach and some only keep the model as it is: it
    leaps, and what it is on its way to cannot be seen. What has been drawn does not change with what follows.
    """
    mean = weight = 0.0
    found = []
    for step, loss in line:
        if math.isfinite(loss):
            mean, weight = (old + (new - old) / over for old, new in ((mean, loss), (weight, 1.0)))
        found.append((step, mean / weight if math.isfinite(loss) else math.nan))
    return tuple(found)


@lru_cache(maxsize=16)
def _reader(path: Path) -> _Reader:
    return _Reader(path)


class _Reader:
    """One file, and how far it has been read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._begin(0)

    def _begin(self, inode: int) -> None:
        self._inode = inode
        self._offset = 0
        self._training: list[tuple[float, float]] = []
        self._heldout: list[tuple[float, float]] = []
        self._before: float | None = None
        self._after: float | None = None

    def read(self) -> Losses | None:
        with self._lock:
            try:
                with self._path.open("rb") as file:
                    about = os.fstat(file.fileno())
                    if about.st_ino != self._inode or about.st_size < self._offset:
                        self._begin(about.st_ino)
                    file.seek(self._offset)
                    fresh = file.read(MOST_BYTES)
            except OSError:
                self._begin(0)
                return None
            # What comes after the last line's end is being written just now.
            whole = len(fresh) if len(fresh) == MOST_BYTES and b"\n" not in fresh else fresh.rfind(b"\n") + 1
            self._offset += whole
            for line in fresh[:whole].split(b"\n"):
                self._take(line)
            each = max(1, -(-len(self._training) // POINTS))
            return Losses(_thin(self._training, each), self._ends(), each)

    def _take(self, line: bytes) -> None:
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            return
        if not isinstance(event, dict):
            return
        step = event.get("step")
        if event.get("event") == "step" and isinstance(step, int):
            for points in (self._training, self._heldout):
                while points and points[-1][0] >= step:
                    points.pop()
            self._training.append((step, _number(event.get("loss"))))
            if math.isfinite(check := _number(event.get("heldout"))):
                self._heldout.append((step, check))
            if len(self._training) > MOST_STEPS:
                del self._training[::2]
        elif event.get("event") == "done":
            self._before, self._after = (
                _number(event.get(name)) for name in ("heldout_before", "heldout_after")
            )

    def _ends(self) -> Line:
        """The held-out line, with the values that are told when all is over."""
        last = self._training[-1][0] if self._training else 1.0
        checks = [(step, loss) for step, loss in self._heldout if step < last or self._after is None]
        points = [(0.0, self._before), *checks, (last, self._after)]
        return tuple((step, loss) for step, loss in points if loss is not None and math.isfinite(loss))


def _number(value: Any) -> float:
    # A number may be too large for a float.
    try:
        return float(value) if type(value) in (int, float) else math.nan
    except OverflowError:
        return math.nan


def _thin(points: Sequence[tuple[float, float]], each: int) -> Line:
    if each == 1:
        return tuple(points)
    groups = (points[start : start + each] for start in range(0, len(points), each))
    return tuple((group[-1][0], _mean([loss for _, loss in group])) for group in groups)


def _mean(losses: Sequence[float]) -> float:
    known = [loss for loss in losses if math.isfinite(loss)]
    return fmean(known) if known else math.nan
