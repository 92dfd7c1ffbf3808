"""Sessions that the store cannot take: kept in memory, so that who is to make room gets in."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.config import Config, keep_good, load_to_serve
from appliance.errors import StorageFull
from appliance.store import Store
from appliance.store.owner import (
    create_session,
    end_other_sessions,
    end_session,
    list_sessions,
    session_valid,
    set_password,
)


@contextmanager
def full(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(*tables: str, wait: float | None = None) -> None:
        raise StorageFull("full")

    with monkeypatch.context() as patched:
        patched.setattr(store.database, "transaction", refuse)
        yield


def test_sessions_in_memory(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    saved = create_session(store, 1)
    with full(store, monkeypatch):
        kept, other = create_session(store, 1), create_session(store, 1)
        assert session_valid(store, kept)
        assert len(list_sessions(store, kept)) == 3
        end_session(store, saved)
        assert not session_valid(store, saved), "though the store still has it"
        end_session(store, other)
        assert not session_valid(store, other)
    assert "kept in memory only" in caplog.text
    assert session_valid(store, kept)
    assert not session_valid(store, saved)
    newer = create_session(store, 1)
    assert end_other_sessions(store, newer) >= 1
    assert not session_valid(store, kept)
    with full(store, monkeypatch):
        kept = create_session(store, 1)
        assert not session_valid(store, "no such token")
        for _ in range(100):
            create_session(store, 1)
        assert len(store.unsaved.sessions) <= 50
    set_password(store, "correct horse battery")
    assert store.unsaved.sessions == {}
    with full(store, monkeypatch):
        expired = create_session(store, -1)
        assert not session_valid(store, expired)


def test_settings_to_serve_with(tmp_path: Path) -> None:
    file, good = tmp_path / "config.toml", tmp_path / "good.toml"
    assert load_to_serve(file, good).config == Config()
    file.write_text("[server]\nbind = '0.0.0.0:9000'\n")
    keep_good(file, good)
    file.write_text("[server]\nbind = 3\n[nonsense]\n")
    keep_good(file, good)
    loaded = load_to_serve(file, good)
    assert loaded.config.server.bind == "0.0.0.0:9000"
    assert len(loaded.problems) == 2
    assert "came up with last" in loaded.instead
    good.write_text("also broken [")
    loaded = load_to_serve(file, good)
    assert (loaded.config, loaded.instead) == (Config(), "the defaults")
    assert loaded.config.server.bind.startswith("127.0.0.1")
    file.write_bytes(b"\xff\xfe")
    assert load_to_serve(file, good).problems
