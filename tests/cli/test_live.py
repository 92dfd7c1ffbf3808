"""The command beside a running daemon."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from daemons import Daemon, StartDaemon

from appliance.home import Home
from appliance.process import only_daemon

Beside = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def beside(daemon: Daemon) -> Beside:
    """Runs the command on the running daemon's home."""

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(Path(sys.executable).with_name("shammah")), *args],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "SHAMMAH_HOME": str(daemon.home.root)},
            check=False,
        )

    return run


def test_status(daemon: Daemon, beside: Beside) -> None:
    shown = beside("status")
    assert shown.returncode == 0, shown.stderr
    assert f"process {daemon.pid}" in shown.stdout
    facts = json.loads(beside("status", "--json").stdout)
    assert facts["running"] is True
    assert facts["url"] == daemon.url
    assert facts["health"] == "ok"
    assert facts["training"]["enabled"] is False


@pytest.mark.parametrize("days", [-9, 9])
def test_it_is_found_whatever_the_clock_said_when_it_started(
    daemon: Daemon, beside: Beside, days: int
) -> None:
    file = daemon.home.daemon
    text = file.read_text()
    known = json.loads(text)
    try:
        file.write_text(json.dumps({**known, "started": known["started"] + days * 86400}))
        assert json.loads(beside("status", "--json").stdout)["running"] is True
    finally:
        file.write_text(text)


def test_the_token_file_is_private(daemon: Daemon) -> None:
    assert daemon.home.daemon.stat().st_mode & 0o077 == 0


def test_a_second_daemon_on_the_home_is_refused(daemon: Daemon, beside: Beside) -> None:
    done = beside("daemon", "--bind", "127.0.0.1:1")
    assert done.returncode == 1
    assert "already running" in done.stderr
    assert "Traceback" not in done.stderr
    assert daemon.get("/health").status_code == 200


def test_a_command_that_looks_for_the_daemon_does_not_keep_it_from_starting(home: Home) -> None:
    home.ensure()
    with (home.root / "daemon.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        over = threading.Timer(0.3, fcntl.flock, (lock, fcntl.LOCK_UN))
        over.start()
        with only_daemon(home):
            pass
        over.join()


def test_a_port_in_use(start_daemon: StartDaemon, daemon: Daemon) -> None:
    other = start_daemon(wait=False)
    other.kill()
    done = subprocess.run(
        [sys.executable, "-m", "appliance.cli", "daemon", "--bind", f"127.0.0.1:{daemon.port}"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "SHAMMAH_HOME": str(other.home.root)},
        check=False,
    )
    assert done.returncode == 1
    assert f"port {daemon.port}" in done.stderr
    assert "in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_store_is_shared(daemon: Daemon, beside: Beside) -> None:
    daemon.ask("What is the capital of France?")
    time.sleep(2)
    assert "What is the capital of France?" in beside("queue", "show").stdout
    exported = [json.loads(line)["query"] for line in beside("queue", "export").stdout.splitlines()]
    assert exported == [json.loads(line)["query"] for line in daemon.home.queue.read_text().splitlines()]
    secret = beside("keys", "create", "tablet").stdout.strip()
    answered = daemon.get("/v1/models", headers={"Authorization": f"Bearer {secret}"})
    assert answered.status_code == 200
    beside("keys", "revoke", "tablet")
    answered = daemon.get("/v1/models", headers={"Authorization": f"Bearer {secret}"})
    assert answered.status_code == 401


def test_forgetting_goes_through_the_daemon(daemon: Daemon, beside: Beside) -> None:
    secret = beside("keys", "create", "kitchen tablet").stdout.strip()
    daemon.post(
        "/v1/chat/completions",
        json={
            "messages": [{"role": "user", "content": "Is the oven off?"}],
            "model": "shammah",
            "max_tokens": 4,
        },
        headers={"Authorization": f"Bearer {secret}"},
    )
    done = beside("queue", "forget", "--device", "kitchen tablet")
    assert done.stdout == "Examples forgotten: 1, stored answers: 1.\n", done.stderr
    assert "Is the oven off?" not in daemon.home.queue.read_text()
    assert "no example" in beside("queue", "forget", "a/b?c").stderr


def test_switching_what_cannot_be_switched(daemon: Daemon, beside: Beside) -> None:
    for args in (("promote", "absent"), ("promote", "../x"), ("rollback",)):
        done = beside("adapters", *args)
        assert done.returncode == 1
        assert done.stderr.startswith("Error: ")
        assert done.stderr.count("\n") == 1
    assert beside("adapters", "promote", "base").returncode == 0
    assert json.loads(beside("adapters", "list", "--json").stdout) == {
        "current": None,
        "pinned": False,
        "data": [],
    }


def test_training_without_examples(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    environment = {**os.environ, "SHAMMAH_HOME": str(daemon.home.root)}
    command = [sys.executable, "-m", "appliance.cli", "train"]
    idle = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert idle.returncode == 0
    assert "0 pending" in idle.stdout
    now = subprocess.run([*command, "--now"], capture_output=True, text=True, env=environment, check=False)
    assert now.returncode == 1
    assert now.stderr.count("\n") == 1


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_a_daemon_leaves_when_told(start_daemon: StartDaemon, end: signal.Signals) -> None:
    daemon = start_daemon()
    os.kill(daemon.pid, end)
    assert daemon.process is not None
    assert daemon.process.wait(30) == 0
    assert not daemon.home.daemon.exists()
    assert "Traceback" not in daemon.log
