"""kill -9 at random points: every restart serves, `current` is valid, nothing acknowledged is lost."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress

import httpx
import psutil
import pytest
from daemons import Daemon, StartDaemon

from appliance.adapters.file import read_adapter
from appliance.model.bundle import Bundle
from appliance.sections import HURRY
from appliance.store import Store

KILLS = int(os.environ.get("SHAMMAH_TEST_KILLS", "5"))
CONFIG = """
[lora]
auto_train_threshold = 6
[train]
nice = 0
epochs = 1
anchor_weight = 0
drift_weight = 0
[resources]
max_load_per_core = 100
min_free_memory_mb = 0
retry_minutes = 0.02
"""


def teach(daemon: Daemon, acknowledged: set[str], number: int) -> None:
    """Some feedback; what the box says it has, it has."""
    with suppress(httpx.HTTPError):
        response = httpx.post(
            f"{daemon.url}/v1/feedback",
            json={
                "query": f"What is the code of room {number}?",
                "response": "I do not know.",
                "correction": f"The code of room {number} is {number * 37 % 1000}.",
                "weight": "high",
            },
            timeout=20,
        )
        if response.status_code == 200:
            acknowledged.add(response.json()["id"])


def trainers(daemon: Daemon) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(daemon.pid).children(recursive=True)
    return []


def check(daemon: Daemon, bundle: Bundle, acknowledged: set[str]) -> None:
    """What must hold after every restart."""
    current = daemon.home.current
    if current.is_symlink():
        assert current.resolve().parent == daemon.home.adapters.resolve()
        read_adapter(current.resolve(), bundle.manifest)
    assert daemon.ask("Say hello.", max_tokens=2, store=False)
    store = Store.open(daemon.home)
    try:
        for example in acknowledged:
            assert store.examples.get(example).state in (
                "pending",
                "training",
                "used",
                "superseded",
                "parked",
            )
    finally:
        store.close()


@pytest.mark.slow
def test_kill_at_random_points(
    start_daemon: StartDaemon, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HURRY, "1")
    chosen = random.Random(20261122)
    daemon = start_daemon(CONFIG)
    acknowledged: set[str] = set()
    killed = {"daemon": 0, "trainer": 0}
    for turn in range(KILLS):
        for number in range(chosen.randrange(1, 5)):
            teach(daemon, acknowledged, turn * 10 + number)
        time.sleep(chosen.random() * 4)
        children = trainers(daemon)
        if children and chosen.random() < 0.5:
            with suppress(psutil.NoSuchProcess):
                chosen.choice(children).send_signal(signal.SIGKILL)
            killed["trainer"] += 1
            assert daemon.get("/health").status_code == 200
            time.sleep(chosen.random())
        else:
            daemon.kill()
            killed["daemon"] += 1
            daemon.start()
        check(daemon, bundle, acknowledged)
    print(f"killed {killed}, {len(acknowledged)} examples acknowledged, none lost")
    # No orphan trains on: whatever the killed daemons left behind is gone or belongs to this one.
    mine = {child.pid for child in trainers(daemon)}
    root = str(daemon.home.root)
    orphans = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            line = " ".join(process.cmdline())
            if root in line and "appliance.learning" in line and process.pid not in mine:
                orphans.append(line)
    assert orphans == []
    assert daemon.stop() == 0
