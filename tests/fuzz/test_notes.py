"""Damaged files that the box writes down for itself: whatever is in them, it starts and shows its pages."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fuzzing import JSON, altered, damaged, many, often
from hypothesis import strategies as st

from appliance import probe
from appliance.backup.mend import NEWS, Mended, read_news
from appliance.commands.client import find_daemon
from appliance.config import Config
from appliance.doctor.box import written_down
from appliance.errors import InvalidSettings, ShammahError
from appliance.events import EventBus
from appliance.home import Home
from appliance.learning.batch import read_frozen
from appliance.learning.forget import _clean_run
from appliance.learning.learned import snapshot_lines
from appliance.learning.losses import read_losses
from appliance.settings.editor import SettingsEditor
from appliance.store import Store
from appliance.store.example import NewExample
from appliance.store.mirror import QueueMirror
from appliance.store.salvage import salvage


def contents(whole: Any) -> st.SearchStrategy[Any]:
    return altered(whole) | JSON | damaged(json.dumps(whole).encode())


def as_bytes(content: Any) -> bytes:
    return content if isinstance(content, bytes) else json.dumps(content).encode()


@pytest.fixture
def store(home: Home) -> Iterator[Store]:
    opened = Store.open(home.ensure())
    yield opened
    opened.close()


def some_examples(store: Store) -> None:
    for number, text in enumerate(("4", "a\u2028b\x85c\u2029d\n", "x" * 50)):
        said = [{"role": "user", "content": f"Q{number}?"}]
        store.examples.add(NewExample("praise", f"Q{number}?", text, text, 1.0, messages=said, rating="up"))


def test_the_queue_with_every_kind_of_line_end(home: Home, store: Store, tmp_path: Path) -> None:
    """What parts lines elsewhere parts none here."""
    some_examples(store)
    QueueMirror(store, home).flush()
    other = Store.open(Home(tmp_path / "other").ensure())
    found = salvage(None, other.database, home.queue)
    assert found.queued == 3
    assert [one.response for one in other.examples.list()] == [one.response for one in store.examples.list()]
    other.close()


@often
def test_the_queue_of_a_lost_store(home: Home, store: Store, tmp_path: Path, examples: int) -> None:
    """Whatever became of `training_queue.jsonl`, the store is mended, and what is in it can be listed."""
    some_examples(store)
    QueueMirror(store, home).flush()
    whole = home.queue.read_bytes()
    lines = [json.loads(line) for line in whole.split(b"\n") if line]
    other = Store.open(Home(tmp_path / "other").ensure())
    path = tmp_path / "queue"

    def check(content: Any) -> None:
        text = content if isinstance(content, bytes) else b"\n".join(map(as_bytes, content))
        path.write_bytes(text)
        with (
            pytest.raises(sqlite3.OperationalError, match="no such table: undone"),
            other.database.transaction() as tx,
        ):
            salvage(None, other.database, path)
            other.database.value("SELECT count(*) FROM examples")
            other.examples.list()
            tx.execute("SELECT * FROM undone")  # the next one begins with nothing again

    try:
        many(examples, altered(lines) | st.lists(JSON, max_size=3) | damaged(whole), check)
        assert other.examples.list() == []
    finally:
        other.close()


@often
def test_where_the_daemon_is(home: Home, examples: int) -> None:
    home.ensure()
    record = {"pid": 4_000_000, "host": "127.0.0.1", "port": 1, "token": "t", "https": 2, "started": 1.0}

    def check(content: Any) -> None:
        home.daemon.write_bytes(as_bytes(content))
        assert find_daemon(home) is None  # nobody holds the lock
        written_down(home)

    many(examples, contents(record), check)


@pytest.mark.parametrize("port", [-1, 0, 10**30, "1e9", True, None])
def test_a_probe_of_no_port(home: Home, port: Any) -> None:
    home.ensure().daemon.write_text(json.dumps({"host": "a b\n", "port": port}))
    assert probe.probe(home, 0.5)[0] is False
    home.daemon.write_text(json.dumps({"host": "127.0.0.1", "port": port}))
    assert probe.probe(home, 0.5)[0] is False


@often
def test_news_of_a_mended_store(home: Home, examples: int) -> None:
    home.ensure()
    news = {"at": 1.0, "problem": "p", "kept": "k", "backup": None, "made": 1.0, "broken": ["devices"]}
    news |= {"queued": 1, "doubtful": 1}

    def check(content: Any) -> None:
        (home.root / NEWS).write_bytes(as_bytes(content))
        found = read_news(home)
        assert found is None or (isinstance(found, Mended) and found.told)

    many(examples, contents(news), check)


@often
def test_files_of_a_run(tmp_path: Path, examples: int) -> None:
    """They are shown while they grow, and after a crash."""
    events = [
        {"event": "step", "step": 1, "steps": 2, "loss": 2.5, "heldout": 2.0},
        {"event": "step", "step": 2, "steps": 2, "loss": 1.5},
        {"event": "done", "heldout_before": 2.0, "heldout_after": 1.0},
    ]
    frozen = [
        {"id": "ex_1", "split": "train", "messages": [{"role": "user", "content": "Q"}], "target": "A"},
        {"id": "ex_2", "split": "heldout", "messages": [], "target": "A"},
    ]
    count = 0

    def check(files: tuple[Any, Any, Any]) -> None:
        nonlocal count
        count += 1
        directory = tmp_path / str(count)
        directory.mkdir()
        for name, content in zip(("metrics.jsonl", "examples.jsonl"), files[:2], strict=True):
            text = content if isinstance(content, bytes) else b"\n".join(map(as_bytes, content)) + b"\n"
            (directory / name).write_bytes(text)
        (directory / "report.json").write_bytes(as_bytes(files[2]))
        read_losses(directory / "metrics.jsonl")
        read_frozen(directory / "examples.jsonl")
        list(snapshot_lines(directory / "examples.jsonl"))
        _clean_run(directory, {"ex_1"})
        for path in directory.iterdir():
            assert path.name == "examples.jsonl" or b"SECRET" not in path.read_bytes()
            path.unlink()
        directory.rmdir()

    def lines(whole: list[Any]) -> st.SearchStrategy[Any]:
        text = b"\n".join(map(as_bytes, whole)) + b"\n"
        return altered(whole).filter(lambda found: isinstance(found, list)) | st.lists(JSON) | damaged(text)

    report = {"passed": True, "checks": [{"name": "n"}], "answers": [{"query": "SECRET"}]}
    many(examples, st.tuples(lines(events), lines(frozen), contents(report)), check)


@often
def test_settings_shown_and_changed(home: Home, store: Store, examples: int) -> None:
    """The page is there for any file, and a form's text is taken or refused in words."""
    home.ensure()
    editor = SettingsEditor(home, store, Config(), EventBus())
    whole = b'# mine\n[model]\nname = "a"  # here\nslots = 2\n[[x]]\n[console]\nname = "b"\n[lora]\nrank=4\n'
    names = st.sampled_from([*editor.page().texts, "no.such", "x"])
    odd = st.sampled_from(
        ["", "1", "-1", "nan", "9" * 5000, "1e999", "[]", '"', "\0", "\ud800", '["a"]', "{}"]
    )

    def check(given: tuple[Any, str, str]) -> None:
        content, name, text = given
        home.config.write_bytes(
            content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
        )
        page = editor.page()
        assert page.texts
        for act in (
            lambda: editor.check(name, text),
            lambda: editor.preview({name: text}, page.file.etag),
            lambda: editor.save({name: text}, page.file.etag, "owner"),
            lambda: editor.reload("owner"),
        ):
            try:
                act()
            except InvalidSettings as error:
                assert error.problems
            except ShammahError as error:
                assert error.message

    many(examples, st.tuples(damaged(whole) | st.text(max_size=60), names, odd | st.text(max_size=20)), check)
