from __future__ import annotations

import sqlite3
import stat
import threading
from pathlib import Path

import pytest

from appliance.errors import StorageFull, Unavailable
from appliance.home import Home
from appliance.store import Store
from appliance.store.db import Database
from appliance.store.migrations import STEPS, migrate, version


def test_durable_and_private(store: Store, home: Home) -> None:
    with store.database.transaction() as tx:
        assert tx.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        assert tx.execute("PRAGMA synchronous").fetchone()[0] == 2
        assert tx.execute("PRAGMA foreign_keys").fetchone()[0] == 1
    store.settings.set("a", "b")
    for path in home.root.glob("store.db*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name


def test_transaction_is_all_or_nothing(store: Store) -> None:
    with pytest.raises(ValueError, match="stop"), store.transaction():
        store.settings.set("a", "1")
        store.audit.add("owner", "set")
        raise ValueError("stop")
    assert store.settings.get("a") is None
    assert store.audit.list() == []


def test_reads_inside_a_transaction_see_its_writes_and_others_do_not(store: Store) -> None:
    seen: list[str | None] = []
    with store.transaction():
        store.settings.set("a", "1")
        assert store.settings.get("a") == "1"
        reader = threading.Thread(target=lambda: seen.append(store.settings.get("a")))
        reader.start()
        reader.join(5)
    assert seen == [None]
    assert store.settings.get("a") == "1"


def test_a_failed_inner_transaction_fails_the_outer_one(store: Store) -> None:
    with pytest.raises(RuntimeError, match="nothing was kept"), store.transaction():
        store.settings.set("a", "1")
        with pytest.raises(ValueError, match="inner"), store.transaction():
            raise ValueError("inner")
    assert store.settings.get("a") is None
    with pytest.raises(RuntimeError, match="rolled back"), store.transaction():
        with pytest.raises(ValueError, match="inner"), store.transaction():
            raise ValueError("inner")
        store.settings.set("a", "1")
    assert store.settings.get("a") is None
    store.settings.set("a", "2")
    assert store.settings.get("a") == "2"


def test_threads_write_at_once(store: Store) -> None:
    def write(name: int) -> None:
        for number in range(20):
            with store.transaction():
                store.settings.set(f"{name}.{number}", "x")
                store.audit.add(str(name), "write", {"number": number})

    threads = [threading.Thread(target=write, args=(name,)) for name in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.audit.list(limit=1000)) == 120


def test_on_change_tells_what_was_committed(store: Store) -> None:
    told: list[frozenset[str]] = []
    remove = store.on_change(told.append)
    store.settings.set("a", "1")
    with store.transaction():
        store.settings.set("a", "2")
        store.audit.add("owner", "set")
        assert len(told) == 1
    with pytest.raises(ValueError, match="stop"), store.transaction():
        store.settings.set("a", "3")
        raise ValueError("stop")
    remove()
    store.settings.set("a", "4")
    assert told == [{"settings"}, {"settings", "audit"}]


def test_full_database_is_storage_full(store: Store) -> None:
    with store.database.transaction() as tx:
        pages = tx.execute("PRAGMA page_count").fetchone()[0]
        tx.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StorageFull), store.transaction():
        store.settings.set("small", "x")
        store.settings.set("big", "x" * 1_000_000)
    assert store.settings.get("small") is None
    with store.database.transaction() as tx:
        tx.execute("PRAGMA max_page_count = 100000")
    store.settings.set("big", "x" * 1_000_000)


def test_closed_store_says_so(store: Store) -> None:
    store.close()
    store.close()
    with pytest.raises(Unavailable, match="closed"):
        store.settings.get("a")
    with pytest.raises(Unavailable, match="closed"):
        store.settings.set("a", "1")


def test_damaged_file_says_so(home: Home) -> None:
    home.ensure()
    home.store.write_bytes(b"not a database at all, but long enough to be looked at" * 100)
    with pytest.raises(Unavailable, match="damaged"):
        Store.open(home)


def test_locked_by_another_program(store: Store, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.store.db.BUSY_SECONDS", 0.2)
    second = Store.open(home)
    with store.transaction():
        store.settings.set("a", "1")
        with pytest.raises(Unavailable, match="in use"):
            second.settings.set("a", "2")
        assert second.settings.get("a") is None
    second.settings.set("a", "2")
    second.close()
    assert store.settings.get("a") == "2"


@pytest.mark.parametrize("start", range(len(STEPS)))
def test_migrates_from_every_earlier_state(tmp_path: Path, start: int) -> None:
    path = tmp_path / "store.db"
    connection = sqlite3.connect(path, isolation_level=None)
    migrate(connection, STEPS[:start])
    assert version(connection) == start
    connection.close()
    database = Database(path)
    assert database.value("PRAGMA user_version") == len(STEPS)
    database.close()


def test_an_interrupted_migration_leaves_the_step_before(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    broken = (*STEPS, ("CREATE TABLE half (a TEXT)", "CREATE TABLE this is not SQL"))
    with pytest.raises(sqlite3.OperationalError):
        migrate(connection, broken)
    assert version(connection) == len(STEPS)
    assert not connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'half'").fetchall()
    connection.close()


def test_a_newer_schema_is_refused(store: Store, home: Home) -> None:
    with store.database.transaction() as tx:
        tx.execute(f"PRAGMA user_version = {len(STEPS) + 1}")
    store.close()
    with pytest.raises(Unavailable, match="newer release"):
        Store.open(home)


def test_two_processes_may_open_a_fresh_home_at_once(home: Home) -> None:
    problems: list[BaseException] = []

    def open_it() -> None:
        try:
            Store.open(home).close()
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
