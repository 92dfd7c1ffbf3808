"""Child programs and their limits, with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from launching import Launchers, children_of, exists, launchers

from appliance.learning import launch
from appliance.learning.child import (
    Child,
    ChildFailed,
    ChildKilled,
    ChildStopped,
    ChildTooLarge,
    Limits,
    kill_orphans,
)
from appliance.learning.yielding import Yielding

LIMITS = Limits(nice=5, memory_mb=2000, seconds=60)


@pytest.fixture(params=["plain", "sliced"], autouse=True)
def sliced(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Launchers | None]:
    """All holds for a child of this process, and for a program that a launcher starts."""
    if request.param == "plain":
        yield None
        return
    with launchers(tmp_path / "socket") as listening:
        monkeypatch.setenv(launch.SOCKET, str(listening.path))
        monkeypatch.setenv(launch.MEMORY, "4000")
        yield listening


def run(
    tmp_path: Path, code: str, limits: Limits = LIMITS, child: Child | None = None
) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    (child or Child()).run(
        [sys.executable, "-c", code], log=tmp_path / "log", limits=limits, on_event=events.append
    )
    return events


def test_lines_are_relayed_and_the_rest_is_logged(tmp_path: Path) -> None:
    code = """
import sys
print('{"event": "step", "step": 1}')
print('hello')
print('[1]')
print('oops', file=sys.stderr)
"""
    assert run(tmp_path, code) == [{"event": "step", "step": 1}]
    assert sorted((tmp_path / "log").read_text().split()) == ["[1]", "hello", "oops"]


def test_it_runs_nicely(tmp_path: Path) -> None:
    code = "import os, time, json; time.sleep(0.5); print(json.dumps({'nice': os.nice(0)}))"
    assert run(tmp_path, code)[0]["nice"] >= 5


def test_a_failure_is_told_in_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(ChildFailed, match=r"^too little data$"):
        run(tmp_path, 'print(\'{"event": "error", "message": "too little data"}\'); raise SystemExit(1)')
    with pytest.raises(ChildFailed, match="ended with code 1: ValueError: bad"):
        run(tmp_path, "raise ValueError('bad')")
    with pytest.raises(ChildFailed, match="killed by SIGKILL"):
        run(tmp_path, "import os; os.kill(os.getpid(), 9)")


def test_a_program_can_say_that_it_lacks_memory(tmp_path: Path) -> None:
    code = (
        'import errno; print(\'{"event": "error", "message": "too large"}\'); raise SystemExit(errno.ENOMEM)'
    )
    with pytest.raises(ChildTooLarge, match=r"^too large$"):
        run(tmp_path, code)


def test_memory_is_limited_children_included(tmp_path: Path) -> None:
    code = "x = bytearray(300_000_000); import time; time.sleep(60)"
    hungry = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"
    started = time.monotonic()
    with pytest.raises(ChildFailed, match="MB of memory; the limit is 200 MB"):
        run(tmp_path, hungry, Limits(0, 200, 60))
    assert time.monotonic() - started < 40
    assert _alive("bytearray") == []


def _alive(words: str) -> list[int]:
    """Processes with these words in their command, but for this one and those that are as good as gone."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and words in " ".join(process.cmdline()):
                found.append(process.pid)
    return found


def test_time_is_limited(tmp_path: Path) -> None:
    with pytest.raises(ChildFailed, match="the limit"):
        run(tmp_path, "import time; time.sleep(60)", Limits(0, 2000, 0.5))


def test_it_can_be_stopped(tmp_path: Path) -> None:
    child = Child()
    threading.Timer(0.5, child.stop).start()
    started = time.monotonic()
    with pytest.raises(ChildStopped):
        run(tmp_path, "import time; time.sleep(60)", child=child)
    assert time.monotonic() - started < 20
    with pytest.raises(ChildStopped):
        run(tmp_path, "print(1)", child=child)


SAVES = """
import os, pathlib, signal, time
def save(*_):
    pathlib.Path("saved").touch()
    os._exit(143)
signal.signal(signal.SIGTERM, save)
print('{"event": "ready"}', flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("still", [False, True])
def test_with_patience_it_may_save_what_it_has_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, still: bool
) -> None:
    """Also while it stands still for a request."""
    monkeypatch.chdir(tmp_path)
    busy = threading.Event()
    child = Child(Yielding(busy.is_set, 0.0))
    told = threading.Event()

    def stop() -> None:
        assert told.wait(30)
        if still:
            busy.set()
            time.sleep(0.3)
        child.stop(patience=20)

    threading.Thread(target=stop, daemon=True).start()
    began = time.monotonic()
    with pytest.raises(ChildStopped):
        child.run(
            [sys.executable, "-c", SAVES],
            log=tmp_path / "log",
            limits=LIMITS,
            on_event=lambda event: told.set(),
        )
    assert time.monotonic() - began < 15
    assert (tmp_path / "saved").exists()


def test_patience_ends(tmp_path: Path) -> None:
    child = Child()
    threading.Timer(1.0, child.stop, [0.5]).start()
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    with pytest.raises(ChildStopped):
        run(tmp_path, deaf, child=child)


def test_a_slice_that_is_stopped_lets_it_save(sliced: Launchers | None, tmp_path: Path) -> None:
    """When the machine goes down, systemd tells launcher and program both."""
    if sliced is None:
        return
    code = """
import json, os, signal, time
def save(*_):
    time.sleep(0.5)
    print('{"event": "saved"}', flush=True)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)
signal.signal(signal.SIGTERM, save)
print(json.dumps({"pid": os.getpid()}), flush=True)
time.sleep(60)
"""
    events: list[dict[str, Any]] = []

    def hear(event: dict[str, Any]) -> None:
        events.append(event)
        if "pid" in event:
            sliced.started[-1].terminate()
            os.kill(event["pid"], signal.SIGTERM)

    with pytest.raises(ChildKilled, match="SIGTERM"):
        Child().run([sys.executable, "-c", code], log=tmp_path / "log", limits=LIMITS, on_event=hear)
    assert {"event": "saved"} in events


def test_orphans_are_known_by_their_output(tmp_path: Path) -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    ours = subprocess.Popen([*sleep, "--out", f"{tmp_path}/run_1/candidate"])
    other = subprocess.Popen([*sleep, "--out", f"{tmp_path}/run_12/candidate"])
    reader = subprocess.Popen([*sleep, f"{tmp_path}/run_1/log"])
    try:
        time.sleep(0.3)
        assert kill_orphans(tmp_path / "run_1") == 1
        assert ours.wait(10) is not None  # psutil has taken its exit code
        assert other.poll() is None
        assert reader.poll() is None
        assert kill_orphans(tmp_path / "run_1") == 0
    finally:
        for process in (ours, other, reader):
            process.kill()
            process.wait()


def test_ctrl_c_at_the_terminal_does_not_reach_it(tmp_path: Path) -> None:
    code = "import os, json; print(json.dumps({'group': os.getpgid(0)}))"
    assert run(tmp_path, code)[0]["group"] != os.getpgid(0)


def test_it_runs_where_it_should(sliced: Launchers | None, tmp_path: Path) -> None:
    code = "import os, json; print(json.dumps({'parent': os.getppid()}))"
    parent = run(tmp_path, code)[0]["parent"]
    assert parent == (sliced.started[0].pid if sliced else os.getpid())
    # One that may take more than the slice grants would be killed there.
    assert run(tmp_path, code, Limits(5, 5000, 60))[0]["parent"] == os.getpid()


def test_nothing_is_left_of_it(sliced: Launchers | None, tmp_path: Path) -> None:
    code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(61)'])"
    run(tmp_path, f"{code}; import os, json; print(json.dumps({{'group': os.getpgid(0)}}))")
    if sliced:
        assert sliced.started[0].wait(20) == 0
    assert _alive("time.sleep(61)") == []


def test_a_socket_that_leads_nowhere_is_passed_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(launch.SOCKET, str(tmp_path / "nowhere"))
    monkeypatch.setenv(launch.MEMORY, "4000")
    code = "import os, json; print(json.dumps({'parent': os.getppid()}))"
    assert run(tmp_path, code)[0]["parent"] == os.getpid()
    assert "no training slice" in caplog.text


def test_it_does_not_outlive_a_daemon_that_is_killed(sliced: Launchers | None, tmp_path: Path) -> None:
    """Not even while it stands still."""
    if sliced is None:
        return  # a plain child: tests/learning/test_yielding.py
    code = f"""
from pathlib import Path
from appliance.learning.child import Child, Limits
from appliance.learning.yielding import Yielding
Child(Yielding(lambda: True, 0.01)).run(
    [{sys.executable!r}, "-c", "import time; time.sleep(600)"], log=Path({str(tmp_path / "log")!r}),
    limits=Limits(5, 2000, 600), on_event=print, on_start=lambda pid: print(pid, flush=True))
"""
    daemon = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert daemon.stdout is not None
    pid = int(daemon.stdout.readline())
    assert children_of(sliced.started[0].pid) == [pid]
    end = time.monotonic() + 30
    while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
        assert time.monotonic() < end, "it did not stand still"
        time.sleep(0.02)
    daemon.kill()
    daemon.wait()
    daemon.stdout.close()
    assert sliced.started[0].wait(30) == 0
    assert not exists(pid)


def test_a_launcher_that_is_killed_ends_it(sliced: Launchers | None, tmp_path: Path) -> None:
    if sliced is None:
        return
    threading.Timer(1.0, lambda: sliced.started[0].kill()).start()
    with pytest.raises(ChildKilled, match="killed by SIGKILL"):
        run(tmp_path, "import time; time.sleep(20)")
