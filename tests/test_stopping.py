"""Stopped soon after its start, the box leaves nothing behind and has nothing to complain of."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from daemons import Daemon, install_bundle
from faults.trial import serving

from appliance.home import Home
from appliance.model.bundle import Bundle
from appliance.sections import HURRY

COMPLAINTS = re.compile(
    r"Traceback|Task was destroyed|never (awaited|retrieved)|Event loop|cancelled before| (ERROR|CRITICAL) "
)


@pytest.mark.slow
def test_at_any_moment_of_its_first_seconds(small: Bundle, tmp_path: Path) -> None:
    home = Home(tmp_path / "home").ensure()
    install_bundle(home, small)
    home.config.write_text(serving(small))
    # What a kill left, for the sweep at the start to have something to wait for.
    (home.root / ".config.toml.abcd1234").touch()
    for wait in (0.0, 0.02, 0.1, 0.4, 1.5):
        daemon = Daemon(home, environment={HURRY: "1"}, output=tmp_path / f"{wait}.out").start(wait=False)
        try:
            deadline = time.monotonic() + 60
            while "Console:" not in daemon.log:
                assert time.monotonic() < deadline, daemon.log
                time.sleep(0.005)
            time.sleep(wait)
            began = time.monotonic()
            assert daemon.stop() == 0
            assert time.monotonic() - began < 10
        finally:
            daemon.kill()
        complaints = [line for line in daemon.log.splitlines() if COMPLAINTS.search(line)]
        assert not complaints, (wait, complaints)
        assert not home.daemon.exists()
