"""Clocks that jump by a day, back and forth, and one that stands still, under a real daemon.

A library of our own (`clock.c`) gives the daemon and its children the time of day that a file says. Nothing
else changes, as when somebody sets the clock; `libfaketime` makes sleeps of Python fail when its clock jumps.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from daemons import Daemon, install_bundle
from faults.acts import BACK_UP
from faults.trial import OWN, Trial, asked_all_the_time, backup_names, opened, serving, until

from appliance.backup import archive
from appliance.files import write_atomic
from appliance.home import Home
from appliance.learning.probation import load_probation
from appliance.model.bundle import Bundle
from appliance.store.owner import set_password

Tally = Callable[[str, int, int], None]
DAY = 86400.0
PAGES = (
    "/",
    "/queue",
    "/runs",
    "/adapters",
    "/devices",
    "/settings",
    "/settings/history",
    "/backup",
)
SETTLED_SECONDS = 8.0
"""The scheduler looks every five."""
PASSWORD = "a long enough password"

pytestmark = pytest.mark.faults


class Clock:
    """What time the daemon thinks it is."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.days = 0.0
        self.set(0)

    def set(self, days: float) -> None:
        """Jump: the clock is that many days ahead of the true one."""
        self.days = days
        write_atomic(self._file, f"{days * DAY:+.0f}\n")

    def stop(self) -> None:
        """It stands still from now on."""
        write_atomic(self._file, f"={time.time():.0f}\n")

    @property
    def environment(self) -> dict[str, str]:
        library = self._file.with_name("clock.so")
        build = [
            "cc",
            "-O1",
            "-shared",
            "-fPIC",
            "-o",
            str(library),
            str(Path(__file__).with_name("clock.c")),
        ]
        subprocess.run(build, check=True)
        return {"LD_PRELOAD": str(library), "SHAMMAH_TEST_CLOCK": str(self._file)}

    def now(self) -> float:
        return time.time() + self.days * DAY


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path / "clock")


@pytest.fixture
def box(small: Bundle, tmp_path: Path, clock: Clock) -> Iterator[Trial]:
    home = Home(tmp_path / "home").ensure()
    install_bundle(home, small)
    home.config.write_text(serving(small).replace("[lora]", "[lora]\nbatch_timeout_minutes = 600"))
    box = Trial(Daemon(home), small)
    box.daemon.environment |= clock.environment
    box.daemon.start()
    yield box
    box.daemon.kill()


def runs(box: Trial) -> int:
    return len(box.runs())


def look_around(box: Trial) -> None:
    """All pages can be read, and the figures are no nonsense."""
    for page in PAGES:
        assert httpx.get(f"{box.daemon.url}{page}", headers=OWN, timeout=60).status_code == 200, page
    assert 0 <= box.daemon.get("/health").json()["uptime_seconds"] < 3600
    assert box.daemon.get("/metrics").status_code == 200


def test_a_day_back_and_forth(box: Trial, clock: Clock, tally: Tally) -> None:
    """One run for one reason, whatever the clock says; serving never notices."""
    box.teach()
    box.teach()
    with asked_all_the_time(box) as statuses:
        time.sleep(SETTLED_SECONDS)
        assert runs(box) == 0
        assert BACK_UP.do(box) == 200

        tally("clock", 1, 0)
        clock.set(1)  # ten hours of waiting have passed, says the clock
        until(lambda: runs(box) == 1, "the run whose time has come", 60)
        assert box.runs()[0].trigger == "timeout"
        assert box.settled().state == "promoted"
        time.sleep(SETTLED_SECONDS)
        assert runs(box) == 1
        look_around(box)
        assert BACK_UP.do(box) == 200
        box.check("a day forward")
        tally("clock", 0, 1)

        tally("clock", 1, 0)
        clock.set(0)  # the adapter is on probation from tomorrow on
        box.teach()

        def on_probation_from_now_on() -> bool:
            with opened(box.home) as store:
                probation = load_probation(store.settings)
            assert probation is not None
            return probation.since <= clock.now() + 1 and probation.until <= clock.now() + DAY + 1

        until(on_probation_from_now_on, "that the probation counts from now on", 60)
        time.sleep(SETTLED_SECONDS)
        assert runs(box) == 1
        look_around(box)
        assert BACK_UP.do(box) == 200
        box.check("a day back")
        tally("clock", 0, 1)

        tally("clock", 1, 0)
        clock.set(-1)  # how long the example has waited cannot be known now: it is due, once
        until(lambda: runs(box) == 2, "the run of an example from tomorrow", 60)
        assert box.settled().state in ("promoted", "rejected")
        box.teach()
        time.sleep(SETTLED_SECONDS)
        assert runs(box) == 2
        look_around(box)
        assert BACK_UP.do(box) == 200
        box.check("another day back")
        tally("clock", 0, 1)
    assert len(statuses) > 20
    assert set(statuses) == {200}
    names = backup_names(box.daemon.get("/backup").text)
    assert len(names) == 4
    assert len({archive.verify(box.home.backups / name).created for name in names}) == 4
    newest, oldest = box.runs()
    assert newest.id != oldest.id
    assert newest.created < oldest.created  # so says the clock; the order is as it was all the same
    # The command beside it finds the daemon, whatever time it was when that was started.
    command = [sys.executable, "-m", "appliance.cli", "status", "--json"]
    told = subprocess.run(
        command,
        env={**os.environ, "SHAMMAH_HOME": str(box.home.root)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert json.loads(told.stdout)["running"], told.stdout
    clock.set(0)
    box.daemon.stop()
    clock.set(-1)
    box.daemon.start()
    clock.set(0)
    told = subprocess.run(
        command,
        env={**os.environ, "SHAMMAH_HOME": str(box.home.root)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert json.loads(told.stdout)["running"], told.stdout
    box.check("a start a day ago")


def test_a_clock_that_stands_still(box: Trial, clock: Clock, tally: Tally) -> None:
    """Two runs and two backups of the same second have two names, in order."""
    tally("clock", 1, 0)
    box.teach()
    clock.stop()
    for number in (1, 2, 3):
        assert box.daemon.post("/v1/training/run").status_code == 202
        until(lambda: box.daemon.get("/v1/training/status").json()["run"], "a run", 60)
        assert box.daemon.post("/v1/training/cancel").status_code == 202
        until(lambda: box.daemon.get("/v1/training/status").json()["run"] is None, "its end", 60)
        until(lambda number=number: len(box.runs()) == number, "that it is stored", 10)
        assert BACK_UP.do(box) == 200
    found = [run.id for run in reversed(box.runs())]
    assert found == [found[0], f"{found[0]}-2", f"{found[0]}-3"]
    names = backup_names(box.daemon.get("/backup").text)
    assert len(names) == 3
    assert len({name[:23] for name in names}) == 1
    assert box.runs()[0].state == "cancelled"
    box.check("a clock that stood still")
    tally("clock", 0, 1)


def test_logins_and_limits(box: Trial, clock: Clock, tally: Tally) -> None:
    """A login ends in time, and nobody is locked out by a clock."""
    with opened(box.home) as store:
        device, secret = store.keys.create("lamp")
        store.keys.change(device.id, name="lamp", collect=True, models=None, rate=600)
        set_password(store, PASSWORD)
    key = {"Authorization": f"Bearer {secret}"}

    def log_in() -> httpx.Client:
        client = httpx.Client(base_url=box.daemon.url, headers=OWN, timeout=60)
        answer = client.post("/login", data={"username": "owner", "password": PASSWORD})
        assert answer.status_code == 303, answer.text
        assert client.get("/queue").status_code == 200
        return client

    first = log_in()
    for days in (1, 0, -1, 0, 1, -1):
        tally("clock", 1, 0)
        clock.set(days)
        for _ in range(3):
            assert httpx.get(f"{box.daemon.url}/v1/models", headers=key, timeout=60).status_code == 200
            body = {"model": "shammah", "messages": [{"role": "user", "content": "Hi."}], "max_tokens": 2}
            answer = httpx.post(f"{box.daemon.url}/v1/chat/completions", headers=key, json=body, timeout=60)
            assert answer.status_code == 200, answer.text
        if days == 1:
            assert first.get("/queue").status_code == 303  # after twelve hours
        log_in().close()
        tally("clock", 0, 1)
    first.close()
