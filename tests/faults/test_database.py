"""Another program locks the database: answers go on, feedback is refused in bounded time, then taken."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from faults.conftest import MakeTrial
from faults.trial import Trial, opened, until

Tally = Callable[[str, int, int], None]
pytestmark = pytest.mark.faults
HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.read()
"""
BOUND = 45.0
"""Seconds that anybody waits at most, on a loaded machine; the box itself waits ten."""


@contextmanager
def locked(box: Trial) -> Iterator[None]:
    """Another program holds the database for writing."""
    command = [sys.executable, "-c", HOLD, str(box.home.store)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        try:
            yield
        finally:
            other.communicate("")


def test_locked_for_long(trial: MakeTrial, tally: Tally) -> None:
    tally("database: locked", 1, 0)
    box = trial()
    assert box.teach().status_code == 200
    with locked(box):
        assert box.daemon.ask("What is asked meanwhile?", max_tokens=4)
        for _ in range(2):
            began = time.monotonic()
            refused = box.teach()
            assert refused.status_code == 503, refused.text
            assert "in use by another program" in refused.json()["error"]["message"]
            assert time.monotonic() - began < BOUND
            assert box.daemon.ask("Say hello.", max_tokens=2)
        for page in ("/", "/queue", "/adapters", "/settings"):
            assert box.daemon.get(page).status_code == 200, page
        assert box.daemon.get("/health").status_code == 200
        until(lambda: "Collection pauses" in box.daemon.log, "that collection pauses", 60)
    until(lambda: "Collection goes on" in box.daemon.log, "that collection goes on", 60)
    assert box.teach().status_code == 200
    with opened(box.home) as store:
        assert "What is asked meanwhile?" in {said.query for said in store.completions.recent(20)}
    box.check("a locked database")
    tally("database: locked", 0, 1)


def test_locked_while_it_starts(trial: MakeTrial, tally: Tally) -> None:
    """It does not come up, says why, and comes up when it is started again."""
    tally("database: locked", 1, 0)
    box = trial()
    assert box.teach().status_code == 200
    box.daemon.stop()
    with locked(box):
        box.daemon.start(wait=False)
        assert box.daemon.process is not None
        code = box.daemon.process.wait(BOUND)
        assert code == 1
        assert "in use by another program" in box.daemon.log
    box.daemon.start()
    box.check("a start with a locked database")
    tally("database: locked", 0, 1)


def test_a_reader_that_never_ends(trial: MakeTrial, tally: Tally) -> None:
    """Somebody looks at the database and forgets it: everything goes on."""
    tally("database: locked", 1, 0)
    box = trial()
    box.teach()
    reader = sqlite3.connect(box.home.store, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM examples").fetchone()
    for _ in range(20):
        assert box.teach().status_code == 200
    box.check("a reader that never ends")
    reader.close()
    box.daemon.kill()
    box.daemon.start()
    box.check("a reader, and a kill")
    tally("database: locked", 0, 1)
