"""What a container's HEALTHCHECK sees."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from daemons import Daemon

from appliance.home import Home
from appliance.probe import probe


def test_a_daemon_that_serves_is_well(daemon: Daemon) -> None:
    well, said = probe(daemon.home)
    assert well and json.loads(said)["status"] == "ok"
    command = [sys.executable, "-m", "appliance.probe"]
    environment = {**os.environ, "SHAMMAH_HOME": str(daemon.home.root)}
    assert subprocess.run(command, env=environment, check=False, stdout=subprocess.DEVNULL).returncode == 0


def test_one_that_accepts_and_never_answers_is_not(home: Home) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        home.daemon.write_text(json.dumps({"host": "0.0.0.0", "port": silent.getsockname()[1]}))
        well, said = probe(home, seconds=0.5)
    assert not well and "No answer within 0.5 seconds" in said
    well, said = probe(home, seconds=0.5)
    assert not well and "refused" in said


def test_nor_is_a_home_without_one(home: Home, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "appliance.probe"]
    environment = {**os.environ, "SHAMMAH_HOME": str(home.root)}
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 1 and "No daemon has come up" in done.stdout
    home.daemon.write_text("{")
    assert not probe(home)[0]
