"""A restore that is cut off, and then its note cannot be read: the box comes up with what it had."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys

import pytest

from appliance.backup import archive
from appliance.backup.mend import mend
from appliance.backup.restore import finish_restore, pending, stage
from appliance.home import Home
from appliance.store import Store
from appliance.store.example import NewExample


def remember(home: Home, query: str) -> None:
    """Leave a write-ahead log behind, as a kill does."""
    code = (
        "import os, sys; from pathlib import Path; from appliance.home import Home\n"
        "from appliance.store import Store; from appliance.store.example import NewExample\n"
        "store = Store.open(Home(Path(sys.argv[1])))\n"
        "said = [{'role': 'user', 'content': sys.argv[2]}]\n"
        "store.examples.add(NewExample('praise', sys.argv[2], 'A', 'A', 1.0, messages=said))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(home.root), query], check=False)
    assert (home.root / "store.db-wal").stat().st_size


def queries(home: Home) -> list[str]:
    connection = sqlite3.connect(home.store)
    found = [row[0] for row in connection.execute("SELECT query FROM examples ORDER BY seq")]
    connection.close()
    return found


@pytest.mark.parametrize("point", ["restore.moved=kill", "restore.moved=kill@3", "restore.aside=kill"])
def test_what_was_there_comes_back(home: Home, point: str) -> None:
    store = Store.open(home.ensure())
    made = archive.create(home, store, "smollm2-135m-instruct", "h")
    store.close()
    home.config.write_text("[lora]\nenabled = false\n")
    remember(home, "after the backup")
    stage(home, made.path, "owner")
    killed = subprocess.run(
        [sys.executable, "-c", "from appliance.backup.restore import *; finish_restore(Home.default())"],
        env={**os.environ, "SHAMMAH_HOME": str(home.root), "SHAMMAH_FAILPOINTS": point},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert not (home.root / "store.db-wal").exists()
    (home.root / ".restore.json").write_bytes(b"\0" * 60)
    assert not finish_restore(home)
    assert not pending(home)
    assert queries(home) == ["after the backup"]
    assert home.config.read_text() == "[lora]\nenabled = false\n"
    assert not list(home.root.glob("before-restore_*"))
    assert (home.root / ".restore.json.spoilt").exists()


def test_a_damaged_store_comes_back_and_is_mended(home: Home) -> None:
    store = Store.open(home.ensure())
    said = [{"role": "user", "content": "Q"}]
    store.examples.add(NewExample("praise", "Q", "A", "A", 1.0, messages=said))
    archive.create(home, store, "smollm2-135m-instruct", "h")
    store.close()
    home.store.write_bytes(b"junk" * 2000)
    killed = subprocess.run(
        [sys.executable, "-c", "from appliance.backup.mend import *; mend(Home.default())"],
        env={**os.environ, "SHAMMAH_HOME": str(home.root), "SHAMMAH_FAILPOINTS": "restore.aside=kill"},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert not home.store.exists()
    (home.root / ".restore.json").write_bytes(b"{")
    assert not finish_restore(home)
    assert mend(home) is not None
    assert queries(home) == ["Q"]


def test_a_finished_restore_is_left_alone(home: Home) -> None:
    store = Store.open(home.ensure())
    made = archive.create(home, store, "smollm2-135m-instruct", "h")
    store.close()
    remember(home, "after the backup")
    stage(home, made.path, "owner")
    assert finish_restore(home)
    (home.root / ".restore.json").write_bytes(b"{")
    assert not finish_restore(home)
    assert queries(home) == []
    (aside,) = home.root.glob("before-restore_*")
    assert queries(Home(aside)) == ["after the backup"]
