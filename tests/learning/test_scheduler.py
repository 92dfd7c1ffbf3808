"""The scheduler looks when told to, and stops quietly at any moment.

When a run is due is covered by test_runs.py, with the real store.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from apscheduler.schedulers.background import BackgroundScheduler

from appliance.home import Home
from appliance.learning.scheduler import Scheduler
from appliance.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(Home(tmp_path / "home"))


def test_it_can_be_stopped_while_it_starts_a_look(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that ends with an error fails the test: pytest makes an error of such warnings."""
    look_up, starting = BackgroundScheduler._lookup_executor, threading.Event()

    def slowly(self: BackgroundScheduler, alias: str) -> object:
        starting.set()
        time.sleep(0.1)
        return look_up(self, alias)

    scheduler = Scheduler(store, lambda: None)
    scheduler.nudge()
    monkeypatch.setattr(BackgroundScheduler, "_lookup_executor", slowly)
    scheduler.start()
    assert starting.wait(10)
    scheduler.stop()
    scheduler.nudge()


def test_a_nudge_during_a_look_is_kept(store: Store) -> None:
    looks: list[float] = []
    inside, go_on = threading.Event(), threading.Event()

    def check() -> None:
        looks.append(time.monotonic())
        inside.set()
        go_on.wait(10)

    scheduler = Scheduler(store, check)
    scheduler.start()
    try:
        assert inside.wait(10)
        scheduler.nudge()
        scheduler.nudge()
        go_on.set()
        deadline = time.monotonic() + 4  # sooner than the next look by the clock
        while len(looks) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
        assert len(looks) == 2
    finally:
        go_on.set()
        scheduler.stop()
