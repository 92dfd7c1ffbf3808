"""What a model takes besides serving: its import and its measurement, in child programs, one at a time.

The owner starts a job and may close the page: it goes on, and its progress is here to be looked at. A
job waits while a run is going on, and goes on no longer than the daemon: both can be done again.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from appliance.config import Config
from appliance.errors import Conflict
from appliance.events import EventBus
from appliance.files import write_atomic
from appliance.hardware import read_hardware
from appliance.home import Home
from appliance.learning.child import Child, ChildFailed, ChildStopped, Limits, kill_orphans
from appliance.learning.figures import FIGURES
from appliance.learning.yielding import Yielding
from appliance.model.importer import clean_leftovers
from appliance.model.source import resolve

logger = logging.getLogger(__name__)

Kind = Literal["import", "measure"]
State = Literal["waiting", "running", "done", "failed", "cancelled"]
GOING_ON: frozenset[State] = frozenset({"waiting", "running"})

DIRECTORY = "models"
"""Under `runs/`: log and result of the job."""
HOURS = 12.0
WAIT_SECONDS = 1.0
TELL_SECONDS = 0.5
DYING_SECONDS = 20.0
LOG_LINES = 15
MB = 1024 * 1024


@dataclass(frozen=True)
class Job:
    """One job, going on or ended.

    Attributes:
        subject: the source that is imported, or the model that is measured.
        stage: what it does just now, for a person.
        fraction: how much of it is done, from 0 to 1.
        message: why it failed, or what came of it.
        log: the end of what the program wrote, if it failed.
    """

    kind: Kind
    subject: str
    state: State
    began: float
    stage: str = ""
    fraction: float = 0.0
    message: str = ""
    log: str = ""
    ended: float | None = None

    @property
    def going_on(self) -> bool:
        return self.state in GOING_ON


class Jobs:
    """Carries out one job at a time, in a thread that watches the program."""

    def __init__(
        self,
        home: Home,
        config: Config,
        events: EventBus,
        *,
        wait: Callable[[], bool] = lambda: False,
        busy: Callable[[], bool] = lambda: False,
    ) -> None:
        """Make it.

        Args:
            home: where models are.
            config: how modest a program has to be.
            events: where progress is told.
            wait: whether a run is going on, which a job waits for.
            busy: whether requests are active, which a job yields to.
        """
        self._home = home
        self._config = config
        self._events = events
        self._wait = wait
        self._busy = busy
        self._place = home.runs / DIRECTORY
        self._lock = threading.Lock()
        self._job: Job | None = None
        self._child: Child | None = None
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._told = 0.0

    @property
    def job(self) -> Job | None:
        """The job going on, or the last that ended until it is dismissed."""
        return self._job

    def start(self) -> None:
        """Deal with what a daemon that was killed left."""
        kill_orphans(self._place)
        clean_leftovers(self._home)

    def stop(self) -> None:
        """End the job going on; nothing of it is left."""
        self._closing.set()
        self._halt()
        if self._thread is not None:
            self._thread.join()

    def import_model(self, source: str, name: str = "") -> Job:
        """Begin to import a model, as `shammah model import` does.

        Raises:
            BundleError: the source is nothing that can be imported.
            Conflict: another job is going on.
        """
        resolve(source)  # what is wrong with the words alone is said at once
        command = [sys.executable, "-m", "appliance.model.importer", "--home", os.fspath(self._home.root)]
        command += ["--out", os.fspath(self._result)]
        command += ["--name", name] if name else []
        memory = int(read_hardware().memory / MB)
        return self._begin(Job("import", source, "waiting", time.time()), [*command, "--", source], memory)

    def measure(self, name: str) -> Job:
        """Begin to measure an installed model's figures.

        Raises:
            Conflict: another job is going on.
        """
        command = [sys.executable, "-m", "appliance.learning.figures", "--out", os.fspath(self._result)]
        command += ["--bundle", os.fspath(self._home.models / name)]
        command += ["--threads", str(self._config.model.threads)]
        memory = self._config.train.memory_limit_mb
        return self._begin(Job("measure", name, "waiting", time.time()), command, memory)

    def cancel(self) -> None:
        """End the job going on.

        Raises:
            Conflict: none is.
        """
        if self._job is None or not self._job.going_on:
            raise Conflict("Nothing is going on that could be cancelled.")
        self._halt()

    def dismiss(self) -> None:
        """Forget the job that ended."""
        with self._lock:
            if self._job is not None and not self._job.going_on:
                self._job = None
        self._events.publish("model.progress")

    @property
    def _result(self) -> Path:
        return self._place / "result.json"

    def _halt(self) -> None:
        with self._lock:
            if self._child is not None:
                self._child.stop()

    def _begin(self, job: Job, command: list[str], memory_mb: int) -> Job:
        with self._lock:
            if self._closing.is_set():
                raise Conflict("The box is stopping: try again when it is back.")
            if self._job is not None and self._job.going_on:
                what = "imported" if self._job.kind == "import" else "measured"
                raise Conflict(
                    f"{self._job.subject} is being {what}: wait until that has ended, or cancel it."
                )
            # An import competes only while it computes, but cannot be told from one that downloads.
            self._child = child = Child(Yielding(self._busy, self._config.resources.busy_share))
            self._job = job
            self._thread = threading.Thread(
                target=self._carry_out, args=(child, command, memory_mb), name="model-job", daemon=True
            )
            self._thread.start()
        self._events.publish("model.progress")
        return job

    def _carry_out(self, child: Child, command: list[str], memory_mb: int) -> None:
        try:
            self._wait_for_run(child)
            self._place.mkdir(mode=0o700, exist_ok=True)
            self._result.unlink(missing_ok=True)
            log = self._place / "log"
            log.unlink(missing_ok=True)
            self._become(state="running", stage="Starting")
            limits = Limits(self._config.train.nice, memory_mb, HOURS * 3600)
            child.run(command, log=log, limits=limits, on_event=self._hear)
            self._finish(json.loads(self._result.read_text(encoding="utf-8")))
        except ChildStopped:
            self._end("cancelled", "Cancelled. Nothing of it is left.")
        except (ChildFailed, OSError, ValueError, KeyError) as error:
            logger.warning("No %s of %s: %s", self._now.kind, self._now.subject, error)
            self._end("failed", str(error), log=_tail(self._place / "log"))
            self._events.publish("model.failed", reason=str(error))

    def _wait_for_run(self, child: Child) -> None:
        while not child.stopped and self._wait():
            self._become(stage="Waiting for the run that is going on")
            self._closing.wait(WAIT_SECONDS)

    @property
    def _now(self) -> Job:
        assert self._job is not None
        return self._job

    def _hear(self, event: Mapping[str, Any]) -> None:
        if event.get("event") == "step":
            self._become(stage=str(event["stage"]), fraction=float(event["fraction"]))

    def _finish(self, result: Mapping[str, Any]) -> None:
        if self._now.kind == "import":
            self._end("done", f"{result['name']} is installed.")
            self._events.publish("model.imported", model=result["name"])
        else:
            write_atomic(self._home.models / self._now.subject / FIGURES, json.dumps(result, indent=1) + "\n")
            self._end("done", "The figures are below.")
            self._events.publish("model.measured", model=self._now.subject)

    def _end(self, state: State, message: str, log: str = "") -> None:
        if self._now.kind == "import":
            clean_leftovers(self._home, DYING_SECONDS)
        self._become(state=state, message=message, log=log, ended=time.time())

    def _become(self, **changes: Any) -> None:
        with self._lock:
            before, self._job = self._now, replace(self._now, **changes)
            now = self._job
        if now == before:
            return
        # A download tells its progress far more often than anybody looks.
        if now.state != before.state or time.monotonic() - self._told >= TELL_SECONDS:
            self._told = time.monotonic()
            self._events.publish("model.progress")


def _tail(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    return "\n".join(line[:300] for line in lines[-LOG_LINES:])
