"""From every earlier schema to this one, with rows in every table; killed on the way; a copy first."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import StorageFull, Unavailable
from appliance.home import Home
from appliance.store import Store
from appliance.store.keep import KEPT, copies
from appliance.store.migrations import STEPS, migrate, version

MESSAGES = '[{"role":"user","content":"What is 2+2?"}]'
FIRST: dict[str, list[dict[str, Any]]] = {
    "runs": [
        {"id": "run_1", "created": 1.0, "trigger": "person", "state": "promoted", "examples": 1, "attempt": 1,
         "adapter": "adapter_1", "report": '{"passed":true}', "metrics": '{"steps":3}'},
        {"id": "run_2", "created": 2.0, "trigger": "retry", "state": "parked", "examples": 1, "attempt": 3},
    ],
    "examples": [
        {"id": f"ex_{number:024x}", "created": float(number), "kind": kind, "state": state, "query": "Ä",
         "response": "4", "target": target, "weight": 1.0, "messages": MESSAGES, "finish_reason": "stop",
         "source": "api", "run_id": run, "query_key": f"q{number}", "response_key": "r", "target_key": "t",
         "context_key": "c"}
        for number, (kind, state, target, run) in enumerate(
            [("automatic", "pending", "4", None), ("praise", "used", "4", "run_1"),
             ("correction", "parked", "5", "run_2"), ("critique", "review", None, None)], 1)
    ],
    "rejected": [{"query_key": "q", "answer_key": "a", "answer": "5", "example_id": None, "at": 1.0}],
    "adapters": [{"name": "adapter_1", "created": 1.0, "sha256": "ab", "size": 3, "base_hash": "h", "rank": 8,
                  "run_id": "run_1", "state": "accepted"}],
    "switches": [{"at": 1.0, "to_": "adapter_1", "reason": "learned", "actor": "appliance"}],
    "devices": [{"id": "dev_1", "name": "Kitchen", "sha256": "cd", "created": 1.0}],
    "completions": [{"id": "chatcmpl-1", "created": 1.0, "model": "m", "query": "q", "response": "r",
                     "messages": MESSAGES, "finish_reason": "stop", "prompt_tokens": 1,
                     "completion_tokens": 1, "query_key": "q", "response_key": "r"}],
    "audit": [{"at": 1.0, "actor": "owner", "action": "login", "detail": "{}"}],
    "settings": [{"key": "owner.password", "value": "hash"}],
}  # fmt: skip
LATER: dict[str, tuple[int, dict[str, Any]]] = {
    "forgotten": (3, {"example_id": "ex_gone", "at": 1.0, "runs": '["run_1"]'}),
    "barred": (3, {"sha256": "ef", "adapter": "adapter_0", "at": 1.0}),
    "withdrawn": (4, {"sha256": "ff", "adapter": "adapter_0", "reason": "worse", "at": 1.0}),
    "changes": (6, {"at": 1.0, "actor": "owner", "differences": '[["lora.enabled",true,false]]'}),
    "usage": (7, {"at": 3600, "device": "dev_1", "requests": 1, "prompt_tokens": 1, "completion_tokens": 1,
                  "seconds": 1.0, "refused": 0}),
}  # fmt: skip


def insert(connection: sqlite3.Connection, table: str, row: dict[str, Any]) -> None:
    columns, places = ", ".join(row), ", ".join("?" * len(row))
    connection.execute(f"INSERT INTO {table} ({columns}) VALUES ({places})", tuple(row.values()))


def old_store(path: Path, schema: int) -> dict[str, list[dict[str, Any]]]:
    """A store as a release with that schema would have left it; gives its rows."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.row_factory = sqlite3.Row
        migrate(connection, STEPS[:schema])
        for table, rows in FIRST.items():
            for row in rows:
                insert(connection, table, row)
        for table, (since, row) in LATER.items():
            if since <= schema:
                insert(connection, table, row)
        tables = [*FIRST, *(table for table, (since, _) in LATER.items() if since <= schema)]
        return {table: rows_of(connection, table) for table in tables}


def rows_of(connection: sqlite3.Connection, table: str) -> list[dict[str, Any]]:
    return [dict(row) for row in connection.execute(f"SELECT * FROM {table} ORDER BY 1")]


@pytest.mark.parametrize("schema", range(1, len(STEPS)))
def test_every_row_comes_along(home: Home, schema: int) -> None:
    home.ensure()
    before = old_store(home.store, schema)
    store = Store.open(home)
    store.database.check()
    with store.database.transaction() as tx:
        for table, rows in before.items():
            now = rows_of(tx, table)
            assert [{name: row[name] for name in rows[0]} for row in now] == rows, table
    # What the tables mean is still understood.
    assert (
        store.examples.counts() | {"pending": 1, "used": 1, "parked": 1, "review": 1}
        == store.examples.counts()
    )
    assert store.runs.get("run_1").metrics == {"steps": 3}
    assert store.adapters.list()[0].state == "accepted"
    assert [device.name for device in store.keys.list()] == ["Kitchen"]
    store.close()
    # And the store as it was is kept, whole.
    (copy,) = copies(home.backups)
    assert copy.name.startswith(f"before-migration_{schema}-{len(STEPS)}_")
    assert copy.stat().st_mode & 0o777 == 0o600
    with closing(sqlite3.connect(copy)) as connection:
        connection.row_factory = sqlite3.Row
        assert version(connection) == schema
        assert {table: rows_of(connection, table) for table in before} == before
    Store.open(home).close()
    assert copies(home.backups) == [copy], "no second one: there was nothing to migrate"


@pytest.mark.parametrize("schema", [1, len(STEPS) - 1])
def test_drafts_that_nobody_has_seen_leave_the_queue(home: Home, schema: int) -> None:
    """Earlier releases trained them without being asked."""
    home.ensure()
    old_store(home.store, schema)
    with closing(sqlite3.connect(home.store, isolation_level=None)) as connection:
        migrate(connection, STEPS[:schema])
        connection.execute("UPDATE examples SET note = 'draft: by the model' WHERE state = 'parked'")
        connection.execute(
            "UPDATE examples SET note = 'draft: by the model', kind = 'critique' WHERE state = 'pending'"
        )
    store = Store.open(home)
    assert store.examples.pending() == []
    assert {example.note for example in store.examples.review()} == {"draft: by the model", None}
    assert store.examples.count("review") == 3
    # What was rejected stays rejected for all.
    with store.database.transaction() as tx:
        assert [row["device"] for row in rows_of(tx, "rejected")] == [""]
    assert [device.teach for device in store.keys.list()] == [False]
    store.close()


def test_the_copy_opens_with_the_release_before(home: Home) -> None:
    """Going back: the copy put in place of the store is what that release left."""
    home.ensure()
    before = old_store(home.store, 8)
    Store.open(home).close()
    (copy,) = copies(home.backups)
    home.store.unlink()
    shutil.copy(copy, home.store)
    with closing(sqlite3.connect(home.store, isolation_level=None)) as connection:
        connection.row_factory = sqlite3.Row
        migrate(connection, STEPS[:8])
        assert rows_of(connection, "examples") == before["examples"]


KILLED = textwrap.dedent("""
    import os, signal, sqlite3, sys
    from pathlib import Path
    from appliance.home import Home
    from appliance.store import Store
    from appliance.store import db

    left, real = int(sys.argv[2]), db.migrate

    def counted(connection):
        def trace(statement):
            global left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        connection.set_trace_callback(trace)
        real(connection)

    db.migrate = counted
    Store.open(Home(Path(sys.argv[1]))).close()
""")


def test_killed_in_the_middle_it_is_the_step_before(home: Home) -> None:
    """At many statements between the first and the last: the next start goes on from a whole step."""
    home.ensure()
    before = old_store(home.store, 3)
    seen = set()
    for statements in (1, 3, 6, 12, 20, 27, 33):
        for path in home.root.glob("store.db*"):
            path.unlink()
        old_store(home.store, 3)
        code = subprocess.run([sys.executable, "-c", KILLED, str(home.root), str(statements)]).returncode
        assert code == -signal.SIGKILL
        with closing(sqlite3.connect(home.store)) as connection:
            connection.row_factory = sqlite3.Row
            seen.add(version(connection))
            assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
            assert [row["id"] for row in rows_of(connection, "examples")] == [
                row["id"] for row in before["examples"]
            ]
        assert copies(home.backups), "the copy was there before the first step"
        store = Store.open(home)
        assert store.database.value("PRAGMA user_version") == len(STEPS)
        store.database.check()
        store.close()
    assert len(seen) >= 3
    assert len(copies(home.backups)) <= KEPT


def test_no_room_for_the_copy(small_disk: Any, new: Any) -> None:
    """Rather than risk it, the store stays as it was, and the message says what to do."""
    home = Home(small_disk.path / "home").ensure()
    old_store(home.store, 5)
    content = home.store.read_bytes()
    with pytest.raises(StorageFull, match="nothing was changed"):
        Store.open(home)
    assert [path.name for path in home.root.glob("store.db")] == ["store.db"]
    with closing(sqlite3.connect(home.store)) as connection:
        assert version(connection) == 5
    assert len(home.store.read_bytes()) == len(content)
    assert not list(home.backups.iterdir())


def test_a_newer_store_is_refused_in_words(home: Home) -> None:
    store = Store.open(home)
    with store.database.transaction() as tx:
        tx.execute(f"PRAGMA user_version = {len(STEPS) + 3}")
    store.close()
    with pytest.raises(Unavailable, match=f"newer release .schema {len(STEPS) + 3}"):
        Store.open(home)
    assert not home.backups.exists(), "nothing was begun"
