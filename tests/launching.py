"""Stands where systemd's socket unit does: a launcher for each connection."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from appliance.learning import launcher


class Launchers:
    """Listens, as `shammah-trainer.socket` says, and starts what `shammah-trainer@.service` says."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.started: list[subprocess.Popen[bytes]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.bind(str(path))
        self._socket.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                with connection:
                    command = [sys.executable, "-m", launcher.__name__]
                    self.started.append(subprocess.Popen(command, stdin=connection))

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for process in self.started:
            with suppress(ProcessLookupError):
                process.kill()
            process.wait()


@contextmanager
def launchers(path: Path) -> Iterator[Launchers]:
    """While it lasts, whoever connects to `path` has a program started."""
    listening = Launchers(path)
    try:
        yield listening
    finally:
        listening.close()


def children_of(pid: int) -> list[int]:
    """Direct children of a process, also when they stand still."""
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def exists(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False
