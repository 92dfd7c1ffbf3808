"""The scheduler looks when told to, and stops quietly at any moment.

When a run is due is covered by test_runs.py, with the real store.
"""

from __future__ import annotations

import threading
import time
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import pytest
from apscheduler.schedulers.background import BackgroundScheduler

from appliance.home import Home
from appliance.learning.scheduler import Scheduler
from appliance.store import Store

MODULE = "appliance.learning.scheduler"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(Home(tmp_path / "home"))


def test_it_can_be_stopped_at_any_moment(store: Store) -> None:
    for _ in range(200):
        scheduler = Scheduler(store, lambda: None)
        scheduler.start()
        scheduler.nudge()
        scheduler.stop()
        scheduler.nudge()


def test_a_check_that_nudges_can_be_stopped(store: Store) -> None:
    """A check changes the store, and so nudges, also while it is waited for."""
    inside, stopping = threading.Event(), threading.Event()

    def check() -> None:
        inside.set()
        stopping.wait(10)
        time.sleep(0.1)
        scheduler.nudge()

    scheduler = Scheduler(store, check)
    scheduler.start()
    assert inside.wait(10)
    stopping.set()
    scheduler.stop()
    assert not any(thread.name == "APScheduler" for thread in threading.enumerate())


def test_a_check_that_fails_is_not_the_last(store: Store) -> None:
    looks: list[int] = []

    def check() -> None:
        looks.append(1)
        raise RuntimeError("the disk is full")

    scheduler = Scheduler(store, check)
    scheduler.start()
    try:
        deadline = time.monotonic() + 10
        while len(looks) < 2 and time.monotonic() < deadline:
            scheduler.nudge()
            time.sleep(0.01)
        assert len(looks) >= 2
    finally:
        scheduler.stop()


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


@pytest.mark.parametrize("hours", [-5, 5])
def test_a_clock_that_is_set_neither_stops_nor_hurries_it(
    store: Store, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    monkeypatch.setattr(f"{MODULE}.CHECK_SECONDS", 0.2)
    looks: list[float] = []

    def looked(times: int) -> bool:
        deadline = time.monotonic() + 20
        goal = len(looks) + times
        while len(looks) < goal and time.monotonic() < deadline:
            time.sleep(0.01)
        return len(looks) >= goal

    scheduler = Scheduler(store, lambda: looks.append(time.monotonic()))
    scheduler.start()
    try:
        assert looked(2)
        _set_clock(monkeypatch, hours)
        began, before = time.monotonic(), len(looks)
        assert looked(5)
        assert len(looks) - before <= (time.monotonic() - began) / 0.2 + 2
    finally:
        scheduler.stop()


def _set_clock(monkeypatch: pytest.MonkeyPatch, hours: int) -> None:
    """For the scheduler, and for what it is built on."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.now(tz) + timedelta(hours=hours)

    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + hours * 3600)
    for module in (MODULE, "apscheduler.schedulers.base", "apscheduler.triggers.interval"):
        monkeypatch.setattr(f"{module}.datetime", Clock)


def test_two_looks_never_overlap(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{MODULE}.CHECK_SECONDS", 0.05)
    inside, most, looks = 0, 0, 0

    def check() -> None:
        nonlocal inside, most, looks
        inside += 1
        most = max(most, inside)
        scheduler.nudge()
        time.sleep(0.1)
        inside -= 1
        looks += 1

    scheduler = Scheduler(store, check)
    scheduler.start()
    try:
        deadline = time.monotonic() + 20
        while looks < 5 and time.monotonic() < deadline:
            scheduler.nudge()
            time.sleep(0.01)
    finally:
        scheduler.stop()
    assert looks >= 5
    assert most == 1
