"""What docs/operate.md tells operators to do: upgrade, downgrade, move to a new box."""

from __future__ import annotations

import functools
import sqlite3
from pathlib import Path

import pytest
from daemons import free_port, install_bundle

from appliance.backup import archive
from appliance.backup.restore import finish_restore, stage
from appliance.doctor.box import looked_at
from appliance.doctor.examine import examine
from appliance.errors import Unavailable
from appliance.home import Home
from appliance.model.bundle import Bundle
from appliance.store import Store
from appliance.store.db import Database
from appliance.store.examples import NewExample
from appliance.store.migrations import STEPS, migrate

OLDER = 8
"""The schema of the older release. When a later one gives `examples` a column, this test begins there."""


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch) -> object:
    """`release(8)`: from now on this program works with the schema of then."""

    def works_with(schema: int) -> None:
        steps = STEPS[:schema]
        monkeypatch.setattr("appliance.store.db.migrate", functools.partial(migrate, steps=steps))

    return works_with


def schema(home: Home) -> int:
    connection = sqlite3.connect(home.store)
    found = int(connection.execute("PRAGMA user_version").fetchone()[0])
    connection.close()
    return found


def remember(store: Store, query: str) -> None:
    store.examples.add(
        NewExample("praise", query, "A", "A", 1.0, messages=[{"role": "user", "content": query}])
    )


def queries(home: Home) -> list[str]:
    connection = sqlite3.connect(home.store)
    found = [row[0] for row in connection.execute("SELECT query FROM examples ORDER BY seq")]
    connection.close()
    return found


def test_up_down_and_elsewhere(tmp_path: Path, bundle: Bundle, release: object) -> None:
    assert callable(release)
    home, box = Home(tmp_path / "home").ensure(), Home(tmp_path / "box").ensure()
    for place in (home, box):
        install_bundle(place, bundle)
    home.config.write_text(f'[console]\nname = "Old"\n[server]\nbind = "127.0.0.1:{free_port()}"\n')

    # The older release has learned something, and makes the backup that an upgrade begins with.
    release(OLDER)
    database = Database(home.store)
    with database.transaction("examples") as then:
        then.execute(
            "INSERT INTO examples (id, created, kind, state, query, response, target, weight, messages,"
            " finish_reason, source, query_key, response_key, target_key, context_key)"
            " VALUES ('ex_1', 1, 'praise', 'pending', 'before', 'A', 'A', 1, '[]', 'stop', 'api',"
            " 'b', 'a', 'a', 'c')"
        )
    kept = archive.create(home, Store(database), bundle.name, bundle.manifest.base_hash)
    database.close()
    assert schema(home) == OLDER

    # Upgrade: the first start brings the store up to date, and what was there is still there.
    release(len(STEPS))
    store = Store.open(home)
    assert [example.query for example in store.examples.list()] == ["before"]
    remember(store, "after")
    store.close()
    assert schema(home) == len(STEPS)

    # Downgrade: the older release refuses what it does not know, and takes its own backup.
    release(OLDER)
    with pytest.raises(Unavailable, match="newer release"):
        Database(home.store)
    assert schema(home) == len(STEPS)
    stage(home, kept.path, "owner")
    assert finish_restore(home)
    Database(home.store).close()
    assert (schema(home), queries(home)) == (OLDER, ["before"])
    (aside,) = home.root.glob("before-restore_*")
    assert queries(Home(aside)) == ["before", "after"]  # nothing is thrown away

    # Move: the same backup in a new box of the present release.
    release(len(STEPS))
    stage(box, kept.path, "owner")
    assert finish_restore(box)
    store = Store.open(box)
    assert [example.query for example in store.examples.list()] == ["before"]
    store.close()
    assert 'name = "Old"' in box.config.read_text()
    with looked_at(box, None, quick=True) as looked:
        report = examine(looked)
    assert [one for one in report.findings if one.level == "error"] == []
