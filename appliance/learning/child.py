"""Child programs: trainer and gate, with niceness, memory and time limits, and their JSON lines.

They may be killed at any time. Each has `--out` with a path inside its run's directory, by which
one that outlived a killed daemon is found again.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil

from appliance import logs
from appliance.learning.launch import Program, launch
from appliance.learning.yielding import Yielding

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.03
"""A request competes with the program for this long at most."""
WEIGH_SECONDS = 0.5
_NAMES = {"peft": "trainer", "ort": "trainer", "gate": "gate", "importer": "import", "figures": "measure"}
memory: dict[str, float] = {}
"""What the programs that run now take, in bytes, by their name; weighed every `WEIGH_SECONDS`."""
SACRIFICE = "500"
"""When the machine runs out of memory, the kernel takes the program rather than the daemon."""
MB = 1024 * 1024
SHUTDOWN_SECONDS = 0.3
"""What kills a program may be the end of the whole machine; the daemon is told of it in the same moment."""


class ChildFailed(Exception):
    """The program did not do its work; the message says why, for a person."""


class ChildTooLarge(ChildFailed):
    """It went beyond its memory."""


class ChildTooSlow(ChildFailed):
    """It went beyond its time."""


class ChildKilled(ChildFailed):
    """It died by a signal that was not ours: it may have been about to succeed."""


class ChildStopped(Exception):
    """The program was stopped on request."""


@dataclass(frozen=True)
class Limits:
    """What a child may take; beyond `memory_mb` or `seconds` of not standing still it is killed."""

    nice: int
    memory_mb: int
    seconds: float


class Child:
    """One program at a time; `stop` may come from any thread, also before `run`.

    Attributes:
        seconds: how long the present program, or the last, has been going on, without standing still.
        peak_mb: how much memory it has been seen to take.
    """

    def __init__(
        self, yielding: Yielding | None = None, on_pause: Callable[[bool], None] = lambda paused: None
    ) -> None:
        """Make one.

        Args:
            yielding: says when the program stands still; it never does by default.
            on_pause: is told when it begins to and when it ends to.
        """
        self._yielding = yielding
        self._on_pause = on_pause
        self._stop = threading.Event()
        self._patience = 0.0
        self._name = ""
        self.seconds = 0.0
        self.peak_mb = 0.0

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stop.is_set()

    def stop(self, patience: float = 0.0) -> None:
        """Kill what runs; `run` then raises `ChildStopped`, now and later.

        Args:
            patience: seconds that it has from SIGTERM on, to save what it has done.
        """
        self._patience = patience
        self._stop.set()

    def run(
        self,
        command: Sequence[str],
        *,
        log: Path,
        limits: Limits,
        on_event: Callable[[dict[str, Any]], None],
        on_start: Callable[[int], None] = lambda pid: None,
        used: float = 0.0,
    ) -> None:
        """Run a program to its end.

        Args:
            command: program and arguments.
            log: gets its stderr, and what it prints that is not a JSON object.
            limits: what it may take.
            on_event: called with each JSON object it prints, from a thread of its own.
            on_start: called with its process id.
            used: seconds of the limit that earlier lives of it have used.

        Raises:
            ChildKilled: it was killed, by a person or for want of memory, or crashed.
            ChildTooLarge: it went beyond its memory, or said so by the exit code ENOMEM.
            ChildTooSlow: it went beyond its time.
            ChildFailed: it failed.
            ChildStopped: `stop` was called.
        """
        if self._stop.is_set():
            raise ChildStopped
        self._name = _name(command)
        with log.open("ab") as errors:
            program = launch(command, errors, limits.memory_mb)
            said: list[str] = []
            reader = threading.Thread(
                target=logs.inheriting(_relay),
                args=(program.output, errors, on_event, said),
                name="child-output",
                daemon=True,
            )
            try:
                reader.start()
                _be_modest(program.pid, limits.nice)
                on_start(program.pid)
                self._watch(program, limits, used)
            finally:
                code = program.finish()
                reader.join(timeout=5)
                program.output.close()
        if code < 0:
            if self._stop.wait(SHUTDOWN_SECONDS):
                raise ChildStopped
            raise ChildKilled(_why(code, log))
        if code:
            failure = ChildTooLarge if code == errno.ENOMEM else ChildFailed
            raise failure(said[-1] if said else _why(code, log))

    def _watch(self, program: Program, limits: Limits, used: float) -> None:
        self.peak_mb = 0.0
        self.seconds, still, weighed, before = 0.0, False, 0.0, time.monotonic()
        try:
            while True:
                if program.ended(within=POLL_SECONDS):
                    return
                if self._stop.is_set():
                    self._let_save(program, still)
                    raise ChildStopped
                now = time.monotonic()
                self.seconds += 0.0 if still else now - before
                before = now
                if used + self.seconds > limits.seconds:
                    raise ChildTooSlow(f"It was stopped after {limits.seconds / 60:g} minutes, the limit.")
                if now - weighed >= WEIGH_SECONDS:
                    weighed = now
                    self._weigh(program.pid, limits.memory_mb)
                if self._yielding is not None and self._yielding.stands_still(now) != still:
                    still = not still
                    program.signal(signal.SIGSTOP if still else signal.SIGCONT)
                    self._on_pause(still)
        finally:
            memory.pop(self._name, None)
            if still:
                self._on_pause(False)

    def _let_save(self, program: Program, still: bool) -> None:
        if self._patience:
            program.signal(signal.SIGTERM)
            if still:
                program.signal(signal.SIGCONT)
            program.ended(within=self._patience)

    def _weigh(self, pid: int, limit: int) -> None:
        used = resident_mb(pid)
        self.peak_mb = max(self.peak_mb, used)
        memory[self._name] = used * MB
        if used > limit:
            raise ChildTooLarge(f"It was stopped at {used:.0f} MB of memory; the limit is {limit} MB.")


def _name(command: Sequence[str]) -> str:
    """What a program is called where all of them are counted."""
    module = command[command.index("-m") + 1] if "-m" in command[:-1] else ""
    return _NAMES.get(module.rpartition(".")[2], "other")


def _be_modest(pid: int, nice: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        process.nice(nice)
        # The last to read and write, but not idle: what an idle process holds of the file system's
        # journal, the store's writes would wait for.
        process.ionice(psutil.IOPRIO_CLASS_BE, 7)
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text(SACRIFICE)


def resident_mb(pid: int) -> float:
    """Resident memory of a process and all its children."""
    total = 0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for member in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += member.memory_info().rss
    return total / MB


def kill_orphans(directory: Path) -> int:
    """Kill programs of a run whose daemon is gone; says how many there were.

    They are known by their `--out` inside the run's directory: a process id alone may by now belong
    to somebody else.
    """
    inside = f"{directory}{os.sep}"
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            pairs = itertools.pairwise(process.cmdline())
            if any(name == "--out" and value.startswith(inside) for name, value in pairs):
                process.kill()
                found.append(process)
    psutil.wait_procs(found, timeout=10)
    return len(found)


def _relay(
    output: IO[str], log: IO[bytes], on_event: Callable[[dict[str, Any]], None], said: list[str]
) -> None:
    with contextlib.suppress(ValueError):  # closed under us: somebody inherited the pipe and holds it
        for line in output:
            try:
                event = json.loads(line)
            except ValueError:
                event = None
            if not isinstance(event, dict):
                log.write(line.encode())
                log.flush()
                continue
            if event.get("event") == "error":
                said.append(str(event.get("message")))
            try:
                on_event(event)
            except Exception:
                logger.exception("A line of the child program could not be relayed")


def _why(code: int, log: Path) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (the system does that when memory runs out)" if code == -signal.SIGKILL else ""
        return f"It was killed by {name}{hint}."
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"It ended with code {code}: {lines[-1][:300]}" if lines else f"It ended with code {code}."
