"""A damaged database: found, kept, and mended from what can be read, a backup, and the queue's mirror."""

from __future__ import annotations

import json
import os
import re
import sqlite3
from pathlib import Path

import pytest

from appliance.backup import archive
from appliance.backup.mend import dismiss_news, mend, read_news
from appliance.backup.restore import finish_restore
from appliance.errors import StorageDamaged
from appliance.home import Home
from appliance.store import Store
from appliance.store.examples import NewExample
from appliance.store.mirror import QueueMirror
from appliance.store.salvage import DOUBTFUL

PAGE = 4096
COUNT = 400


def example(number: int) -> NewExample:
    query = f"Question {number}?"
    return NewExample(
        kind="automatic",
        query=query,
        response=f"Answer {number}. " + "x" * 500,
        target=f"Answer {number}. " + "x" * 500,
        weight=1.0,
        messages=[{"role": "user", "content": query}],
    )


@pytest.fixture
def full(home: Home) -> Home:
    """A home whose examples were made before a backup (the first half) and after it."""
    home.ensure()
    store = Store.open(home)
    secret = store.keys.create("Kitchen")[1]
    with store.transaction():
        for number in range(COUNT // 2):
            store.examples.add(example(number))
    archive.create(home, store, "m", "h")
    with store.transaction():
        for number in range(COUNT // 2, COUNT):
            store.examples.add(example(number))
        run = store.runs.create("person", 10)
        store.examples.hold(run.id, [found.id for found in store.examples.pending(10)])
        store.runs.update(run.id, state="promoted", ended=1.0)
        store.examples.mark_used(run.id)
        store.forgotten.erase(store.forgotten.traces([store.examples.list(newest_first=False)[20].id]), {})
    store.audit.add("owner", "secret", {"key": secret})
    QueueMirror(store, home).flush()
    store.close()
    return home


def told(home: Home) -> dict[str, str]:
    """Query and state of every example."""
    store = Store.open(home)
    found = {found.query: found.state for found in store.examples.list(limit=10_000)}
    store.database.check()
    store.close()
    return found


def page_of(home: Home, name: str) -> list[int]:
    """The pages of a table or index, its root first."""
    connection = sqlite3.connect(home.store)
    try:
        pages = connection.execute(
            "SELECT pageno FROM dbstat WHERE name = ? ORDER BY path", (name,)
        ).fetchall()
        return [row[0] for row in pages]
    except sqlite3.OperationalError:  # built without dbstat: the root will do
        root = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (name,)).fetchone()
        return [root[0]]
    finally:
        connection.close()


def spoil(home: Home, page: int, junk: bytes = b"\xa5") -> None:
    with home.store.open("r+b") as file:
        file.seek((page - 1) * PAGE)
        file.write(junk * PAGE)


def leaves_of_examples(home: Home) -> list[int]:
    """Pages on which texts of examples lie, in the order of the file."""
    data = home.store.read_bytes()
    return [
        number // PAGE + 1
        for number in range(0, len(data), PAGE)
        if b"Question 1" in data[number : number + PAGE]
        and b"xxxxxxxxxx" in data[number : number + PAGE]
        and data[number] == 13
    ]


def test_a_sound_store_is_left_alone(full: Home) -> None:
    before = full.store.read_bytes()
    full.daemon.write_text("{}")  # the daemon was killed
    assert mend(full) is None
    assert full.store.read_bytes() == before
    assert read_news(full) is None
    assert mend(Home(full.root / "nowhere")) is None


def test_a_broken_index_loses_nothing(full: Home) -> None:
    before = told(full)
    spoil(full, page_of(full, "examples_state")[0])
    mended = mend(full)
    assert mended is not None
    assert mended.broken == ()
    assert "nothing is lost" in mended.told
    assert told(full) == before
    assert read_news(full) == mended
    dismiss_news(full)
    assert read_news(full) is None
    assert mend(full) is None


def test_a_broken_page_is_made_up_for(full: Home) -> None:
    """What lay on it is as in the backup, or as the queue's mirror says; nothing is learned twice."""
    before = told(full)
    pages = leaves_of_examples(full)
    assert len(pages) > 20
    data = full.store.read_bytes()

    def newest_on(page: int) -> int:
        return max(map(int, re.findall(rb"Question (\d+)", data[(page - 1) * PAGE : page * PAGE])))

    # Where in the file the newer half lies depends on what else there is.
    for page in {pages[2], pages[10], pages[11], max(pages, key=newest_on)}:
        spoil(full, page)
    damaged = full.store.read_bytes()
    with pytest.raises(StorageDamaged):
        told(full)
    mended = mend(full)
    assert mended is not None
    assert mended.broken == ("examples",)
    assert mended.backup == archive.backups(full)[0].name
    assert "from a backup; that concerns: examples" in mended.told
    assert (full.root / mended.kept / "store.db").read_bytes() == damaged
    assert told(full) == before | {
        query: state for query, state in told(full).items() if before[query] == "used" and state == "excluded"
    }
    assert mended.queued > 0, "the newer half is in no backup"
    store = Store.open(full)
    assert [entry.action for entry in store.audit.list(1)] == ["store.mended"]
    assert len(store.forgotten.known(["x"])) == 0
    assert "Question 20?" not in told(full), "it was forgotten, and is in the backup"
    store.close()


def test_used_ones_are_not_learned_again(full: Home) -> None:
    pages = leaves_of_examples(full)
    spoil(full, pages[0])
    mended = mend(full)
    assert mended is not None
    assert mended.doubtful > 0
    store = Store.open(full)
    doubtful = [found for found in store.examples.list("excluded", limit=100) if found.note == DOUBTFUL]
    store.close()
    assert len(doubtful) == mended.doubtful
    assert all(int(found.query.split()[1].rstrip("?")) < 10 for found in doubtful), "those the run had"


def test_nothing_can_be_read(full: Home) -> None:
    before = told(full)
    full.store.write_bytes(b"\x00" * 3 + os.urandom(50_000))
    mended = mend(full)
    assert mended is not None
    after = told(full)
    waiting = {query for query, state in before.items() if state == "pending"}
    assert {query for query, state in after.items() if state == "pending"} == waiting
    store = Store.open(full)
    assert [device.name for device in store.keys.list()] == ["Kitchen"]
    store.close()
    assert "Look whether keys that you have revoked" in mended.told


@pytest.mark.parametrize("content", [b"", b"junk" * 1000])
def test_no_backup_there(full: Home, content: bytes) -> None:
    """The box comes up all the same, with what the queue's mirror has."""
    before = told(full)
    for found in archive.backups(full):
        archive.delete(full, found.name)
    full.store.write_bytes(content)
    mended = mend(full)
    assert mended is not None
    assert (mended.backup, mended.made) == (None, None)
    assert "There was no backup" in mended.told
    after = told(full)
    assert set(after) == {query for query, state in before.items() if state == "pending"}
    assert set(after.values()) == {"pending"}
    assert (full.root / mended.kept / "store.db").read_bytes() == content


def test_a_damaged_backup_is_passed_over(full: Home) -> None:
    good = archive.backups(full)[0]
    newer = full.backups / "auto_20990101T000000Z.tar.gz"
    newer.write_bytes(good.path.read_bytes()[: good.size // 2])
    full.store.write_bytes(b"junk" * 1000)
    mended = mend(full)
    assert mended is not None
    assert mended.backup == good.name


def test_one_from_elsewhere_is_not_taken(full: Home) -> None:
    good = archive.backups(full)[0]
    good.path.rename(full.backups / good.name.replace("backup_", "brought_"))
    full.store.write_bytes(b"junk" * 1000)
    mended = mend(full)
    assert mended is not None
    assert mended.backup is None


def test_cut_off_anywhere(full: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """The power goes at any rename: the next start finishes, and nothing that was there is gone."""
    spoil(full, page_of(full, "examples_state")[0])
    damaged = full.store.read_bytes()
    real = Path.rename
    allowed = [0]

    class Cut(BaseException):
        pass

    def rename(self: Path, target: Path) -> Path:
        allowed[0] -= 1
        if allowed[0] < 0:
            raise Cut
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    cuts = 0
    for limit in range(10):
        allowed[0] = limit % 3
        try:
            finish_restore(full)
            if mend(full) is None:
                break
        except Cut:
            cuts += 1
    monkeypatch.undo()
    assert cuts >= 2
    finish_restore(full)
    assert mend(full) is None
    assert len(told(full)) == COUNT - 1
    kept = [path / "store.db" for path in full.root.glob("damaged_*")]
    assert damaged in [path.read_bytes() for path in kept if path.exists()]
    assert not list(full.root.glob(".mending*"))


def test_the_schema_may_be_older(full: Home) -> None:
    """A damaged store of an earlier release: what is read is brought to this schema."""
    store = Store.open(full)
    with store.database.transaction() as tx:
        tx.execute("DROP TABLE changes")
        tx.execute("PRAGMA user_version = 5")
    store.close()
    before = {"Question 30?", "Question 399?"}
    spoil(full, page_of(full, "examples_state")[0])
    mended = mend(full)
    assert mended is not None
    assert mended.broken == ("changes",)
    assert before <= set(told(full))


def test_devices_stay(full: Home) -> None:
    store = Store.open(full)
    secret = json.loads(json.dumps(store.audit.list(1)[0].detail))["key"]
    store.close()
    spoil(full, leaves_of_examples(full)[3])
    assert mend(full) is not None
    store = Store.open(full)
    device = store.keys.verify(secret)
    store.close()
    assert device is not None
    assert device.name == "Kitchen"
