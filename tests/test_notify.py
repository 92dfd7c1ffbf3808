"""What a supervisor hears of a real daemon: the test listens where systemd would."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from daemons import Daemon, StartDaemon

from appliance.failpoints import VARIABLE

WATCHDOG = 1.2
SAME_SITE = {"Sec-Fetch-Site": "same-origin"}


class Supervisor:
    """Takes datagrams, and remembers when each came."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self.heard: list[tuple[float, str]] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def close(self) -> None:
        self._socket.close()

    def wait(self, line: str, since: float = 0.0, seconds: float = 60) -> float:
        """When a line that begins like this was heard."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for at, said in list(self.heard):
                if at >= since and said.startswith(line):
                    return at
            time.sleep(0.05)
        raise AssertionError(f"{line} was not heard, but {self.heard}")

    def count(self, line: str, since: float) -> int:
        return sum(at >= since and said.startswith(line) for at, said in list(self.heard))

    def _listen(self) -> None:
        with suppress(OSError):
            while True:
                for line in self._socket.recv(4096).decode().split("\n"):
                    self.heard.append((time.monotonic(), line))


@pytest.fixture
def supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervisor]:
    listening = Supervisor(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(listening.path))
    monkeypatch.setenv("WATCHDOG_USEC", str(int(WATCHDOG * 1e6)))
    monkeypatch.setenv(VARIABLE, str(tmp_path / "failpoints"))
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    yield listening
    listening.close()


def _silent(supervisor: Supervisor) -> None:
    """No beat for longer than a watchdog would wait."""
    end = time.monotonic() + 60
    while supervisor.count("WATCHDOG=1", time.monotonic() - 1.5 * WATCHDOG):
        assert time.monotonic() < end, "the daemon hangs, and beats all the same"
        time.sleep(0.1)


def _ask_in_the_background(daemon: Daemon) -> threading.Thread:
    def ask() -> None:
        with suppress(AssertionError, httpx.HTTPError):
            daemon.ask("Hi")

    asking = threading.Thread(target=ask)
    asking.start()
    return asking


def test_a_supervisor_hears_how_the_daemon_is(
    start_daemon: StartDaemon, supervisor: Supervisor, tmp_path: Path
) -> None:
    daemon = start_daemon("[lora]\nenabled = false\n", wait=False)
    assert supervisor.wait("EXTEND_TIMEOUT_USEC=") <= supervisor.wait("READY=1")
    assert daemon.get("/ready").status_code == 200
    supervisor.wait("STATUS=Serving ")

    # An idle daemon beats, and one that answers.
    now = time.monotonic()
    assert daemon.ask("What is the capital of France?")
    supervisor.wait("WATCHDOG=1", now)
    supervisor.wait("WATCHDOG=1", time.monotonic())

    # One whose step, or whose event loop, hangs does not.
    for name in ("engine.step", "engine.queue"):
        (tmp_path / "failpoints").write_text(f"{name}=hang")
        asking = _ask_in_the_background(daemon)
        _silent(supervisor)
        (tmp_path / "failpoints").unlink()
        supervisor.wait("WATCHDOG=1", time.monotonic())
        asking.join(60)

    now = time.monotonic()
    os.kill(daemon.pid, signal.SIGHUP)
    assert supervisor.wait("RELOADING=1", now) <= supervisor.wait("READY=1", now)

    # A restart from within: never down, and ready once more.
    now = time.monotonic()
    httpx.post(f"{daemon.url}/restart", headers=SAME_SITE, timeout=30)
    supervisor.wait("RELOADING=1", now)
    supervisor.wait("READY=1", now)
    assert not supervisor.count("STOPPING=1", 0)
    supervisor.wait("WATCHDOG=1", time.monotonic())

    now = time.monotonic()
    assert daemon.stop() == 0
    supervisor.wait("STOPPING=1", now)
