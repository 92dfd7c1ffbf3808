"""Pages of the database are overwritten: found at the start, mended from the last good backup, and said."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

import pytest
from faults.acts import BACK_UP
from faults.conftest import MakeTrial
from faults.trial import OWN, Trial, until

Tally = Callable[[str, int, int], None]
pytestmark = pytest.mark.faults


def overwrite(box: Trial, table: str) -> None:
    """Where that table begins there is nonsense now."""
    connection = sqlite3.connect(f"file:{box.home.store}?mode=ro", uri=True)
    (page,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,)).fetchone()
    (size,) = connection.execute("PRAGMA page_size").fetchone()
    connection.close()
    with box.home.store.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xa5" * size)


def check_mended(box: Trial, when: str) -> None:
    assert "The store was damaged" in box.daemon.log
    assert "damaged" in box.daemon.get("/", headers=OWN).text
    assert list(box.home.root.glob("damaged_*")), when
    box.check(when)
    assert box.teach().status_code == 200
    box.check_tidy()


@pytest.mark.parametrize("table", ["examples", "runs", "completions"])
def test_of_a_stopped_box(trial: MakeTrial, table: str, tally: Tally) -> None:
    """What was taught after the backup comes back from the queue's mirror."""
    tally("database: damaged", 1, 0)
    box = trial()
    for _ in range(3):
        assert box.teach().status_code == 200
    assert BACK_UP.do(box) == 200
    assert box.teach().status_code == 200
    until(box.mirrored, "the mirror", 30)
    box.daemon.stop()
    overwrite(box, table)
    box.daemon.start()
    check_mended(box, f"damage of {table}")
    tally("database: damaged", 0, 1)


def test_of_a_running_box(trial: MakeTrial, tally: Tally) -> None:
    """It serves on; the next start mends it."""
    tally("database: damaged", 1, 0)
    box = trial()
    for _ in range(3):
        assert box.teach().status_code == 200
    assert BACK_UP.do(box) == 200
    until(box.mirrored, "the mirror", 30)
    # As after some hours: all is in the file itself, and not in the log beside it any more.
    connection = sqlite3.connect(box.home.store)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    overwrite(box, "examples")
    assert box.daemon.ask("Say hello.", max_tokens=2, store=False)
    box.teach()  # refused or taken; nobody may wait for ever
    assert box.daemon.ask("Say hello.", max_tokens=2, store=False)
    assert box.daemon.get("/health").status_code == 200
    box.daemon.kill()
    box.daemon.start()
    check_mended(box, "damage under a running box")
    tally("database: damaged", 0, 1)
