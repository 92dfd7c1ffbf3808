"""On a fresh home the doctor warns of nothing that the box did, and all it makes is for itself alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from daemons import Daemon, install_bundle
from faults.trial import CONFIG, Trial, serving, until

from appliance.home import Home
from appliance.model.bundle import Bundle
from appliance.sections import HURRY

COMMAND = [sys.executable, "-m", "appliance.cli"]
OF_THE_MACHINE = {"clock", "disk", "memory"}
"""What the box has not made: whether this machine's clock is set, how much it has."""


def run(home: Home, *words: str, stdin: str = "") -> str:
    done = subprocess.run(
        ["bash", "-c", 'umask 022; exec "$@"', "-", *COMMAND, *words],
        env={**os.environ, "SHAMMAH_HOME": str(home.root), HURRY: "1"},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert words[0] == "doctor" or done.returncode == 0, done.stderr
    return done.stdout


def warns(home: Home) -> list[tuple[str, str]]:
    findings: list[dict[str, Any]] = json.loads(run(home, "doctor", "--json"))["findings"]
    assert findings
    return [
        (found["check"], found["seen"])
        for found in findings
        if found["level"] in ("warning", "error") and found["check"] not in OF_THE_MACHINE
    ]


def open_to_others(home: Home) -> list[str]:
    return [
        f"{path.stat().st_mode & 0o777:o} {path.relative_to(home.root)}"
        for path in home.root.rglob("*")
        if not path.is_symlink() and home.models not in (path, *path.parents) and path != home.config
        if path.stat().st_mode & 0o077
    ]


@pytest.mark.slow
def test_from_the_first_start_on(small: Bundle, tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    assert warns(home) == []
    previous = os.umask(0o022)
    try:
        install_bundle(home, small)
        tls = '[tls]\nbind = "127.0.0.1:0"\n'
        home.config.write_text(serving(small, CONFIG + tls))
        assert warns(home) == []
        trial = Trial(Daemon(home), small)
        trial.daemon.start()
        try:
            assert warns(home) == []
            trial.daemon.ask("What is a door?", max_tokens=2)
            until(lambda: trial.daemon.get("/v1/training/status").json()["pending"], "an example", 20)
            assert warns(home) == []
            for _ in range(2):
                assert trial.teach().status_code == 200
            started = trial.daemon.post("/v1/training/run").json()["id"]
            until(lambda: trial.daemon.get(f"/v1/training/runs/{started}").json()["ended"], "a run", 120)
            run(home, "backup")
            run(home, "console", "password", stdin="correct horse battery\n")
            assert warns(home) == []
            assert open_to_others(home) == []
        finally:
            trial.daemon.stop()
        assert warns(home) == []
        # What an earlier release has left is closed at the next start.
        for path in (home.store, home.queue, home.runs / started / "metrics.jsonl"):
            path.chmod(0o644)
        assert warns(home) != []
        trial.daemon.start()
        trial.daemon.stop()
        assert warns(home) == []
        assert open_to_others(home) == []
    finally:
        os.umask(previous)
