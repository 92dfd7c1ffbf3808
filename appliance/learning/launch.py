"""How a child program comes to run: as the daemon's own child, or under systemd in a slice of its own.

Serving wins over training for certain only where the kernel parts them: in control groups with weights
and a memory limit. An ordinary user may not make those. So systemd listens for the daemon, starts
`launcher.py` in the slice for each program that it wants, and takes all of it down when that ends. What
was given to the program is the same: the launcher gets the files for its output from here, by the
socket. It holds the ended program's process id until we let go, so signals never reach a stranger.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import socket
import subprocess
from collections.abc import Sequence
from typing import IO, Any, Protocol

logger = logging.getLogger(__name__)

SOCKET = "SHAMMAH_TRAINER_SOCKET"
"""Environment: where systemd listens. Without it programs are plain children."""
MEMORY = "SHAMMAH_TRAINER_MEMORY_MB"
"""Environment: what the slice grants. A program that may take more is a plain child, or it would be killed
within its own limit."""
START_SECONDS = 60.0
MESSAGE_BYTES = 1 << 18
_OF_THE_UNIT = frozenset(
    ("INVOCATION_ID", "JOURNAL_STREAM", "LISTEN_FDNAMES", "LISTEN_FDS", "LISTEN_PID", "NOTIFY_SOCKET")
) | {"SYSTEMD_EXEC_PID", "WATCHDOG_PID", "WATCHDOG_USEC"}
"""What systemd says to one process alone."""


class Program(Protocol):
    """A running program, the leader of its process group."""

    @property
    def pid(self) -> int: ...

    @property
    def output(self) -> IO[str]: ...

    def ended(self, within: float) -> bool:
        """Whether it ends in so many seconds."""

    def signal(self, number: signal.Signals) -> None:
        """To it and its children."""

    def finish(self) -> int:
        """Kill what is left of it; its exit code, negative for a signal."""


def launch(command: Sequence[str], errors: IO[bytes], memory_mb: int) -> Program:
    """Start a program: in the slice if there is one for it, else as a child.

    Args:
        command: program and arguments.
        errors: gets its stderr.
        memory_mb: what it may take.

    Raises:
        OSError: it cannot be started.
    """
    path, granted = os.environ.get(SOCKET), os.environ.get(MEMORY, "")
    if path and granted.isdigit() and int(granted) < memory_mb:
        logger.info(
            "This program may take %d MB and the training slice grants %s MB: it runs beside the daemon. "
            "`shammah install` fits the slice to [train] memory_limit_mb.",
            memory_mb,
            granted,
        )
    elif path:
        try:
            return Sliced(path, command, errors)
        except OSError as error:
            logger.warning("There is no training slice at %s (%s): running beside the daemon.", path, error)
    return Plain(command, errors)


class Plain:
    """A child of this process."""

    def __init__(self, command: Sequence[str], errors: IO[bytes]) -> None:
        # A process group of its own: Ctrl-C at the daemon's terminal is the daemon's business. Not a
        # session: Linux shares the processor out among sessions first (autogroup), and niceness
        # would count only inside the trainer's.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            process_group=0,
            encoding="utf-8",
            errors="replace",
        )
        assert self._process.stdout is not None
        self.output: IO[str] = self._process.stdout
        self.pid = self._process.pid

    def ended(self, within: float) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(within)
            return True
        return False

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def finish(self) -> int:
        self.signal(signal.SIGKILL)
        return self._process.wait()


class Sliced:
    """A program that the launcher at the other end of a connection has started."""

    def __init__(self, path: str, command: Sequence[str], errors: IO[bytes]) -> None:
        """Start it.

        Raises:
            OSError: nobody listens, or nothing was started.
        """
        self._code: int | None = None
        reading, writing = os.pipe2(os.O_CLOEXEC)
        self.output: IO[str] = open(reading, encoding="utf-8", errors="replace")  # noqa: SIM115, PTH123
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._socket.settimeout(START_SECONDS)
            self._socket.connect(path)
            environment = {key: value for key, value in os.environ.items() if key not in _OF_THE_UNIT}
            request = json.dumps({"command": list(command), "env": environment}).encode()
            socket.send_fds(self._socket, [request], [writing, errors.fileno()])
            answer = self._hear()
            if "pid" not in answer:
                raise OSError(answer.get("error", "the launcher ended before it started anything"))
            self.pid = int(answer["pid"])
            self._life = os.pidfd_open(self.pid)
        except BaseException:
            self._socket.close()
            self.output.close()
            raise
        finally:
            os.close(writing)

    def ended(self, within: float) -> bool:
        if self._code is None:
            poll = select.poll()
            poll.register(self._socket, select.POLLIN)
            if not poll.poll(within * 1000):
                return False
            answer = self._hear()
            if "code" not in answer:
                # The launcher was killed: systemd kills the rest, and the process id may be a stranger's.
                self._socket.close()
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._life, signal.SIGKILL)
            self._code = int(answer.get("code", -signal.SIGKILL))
        return True

    def signal(self, number: signal.Signals) -> None:
        if self._socket.fileno() >= 0:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    def finish(self) -> int:
        self.signal(signal.SIGKILL)
        while not self.ended(within=START_SECONDS):
            logger.warning("Process %d has been killed, but does not end.", self.pid)
        self._socket.close()
        os.close(self._life)
        assert self._code is not None
        return self._code

    def _hear(self) -> dict[str, Any]:
        try:
            said = self._socket.recv(MESSAGE_BYTES)
        except ConnectionError:
            said = b""
        return dict(json.loads(said)) if said else {}
