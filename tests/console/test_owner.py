from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.errors import InvalidRequest
from appliance.home import Home
from appliance.store import Store
from appliance.store.owner import (
    create_session,
    end_session,
    password_set,
    session_valid,
    set_password,
    verify_password,
)

PASSWORD = "correct horse battery"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(Home(tmp_path))
    yield opened
    opened.close()


def test_password(store: Store) -> None:
    assert not password_set(store)
    assert not verify_password(store, "")
    set_password(store, PASSWORD)
    assert password_set(store)
    assert verify_password(store, PASSWORD)
    assert not verify_password(store, PASSWORD + " ")
    assert not verify_password(store, "x" * 1_000_000)


def test_password_is_not_in_the_file(store: Store, tmp_path: Path) -> None:
    set_password(store, PASSWORD)
    token = create_session(store, 1)
    store.close()
    for path in tmp_path.glob("store.db*"):
        assert PASSWORD.encode() not in path.read_bytes()
        assert token.encode() not in path.read_bytes()


@pytest.mark.parametrize("text", ["", "short", "x" * 1025])
def test_unfit_passwords(store: Store, text: str) -> None:
    with pytest.raises(InvalidRequest):
        set_password(store, text)
    assert not password_set(store)


def test_sessions(store: Store) -> None:
    set_password(store, PASSWORD)
    mine, phone = create_session(store, 1), create_session(store, 1)
    assert mine != phone
    assert session_valid(store, mine)
    end_session(store, mine)
    assert not session_valid(store, mine)
    assert session_valid(store, phone)
    for nothing in (None, "", "guess", mine[:-1]):
        assert not session_valid(store, nothing)


def test_sessions_expire(store: Store) -> None:
    assert not session_valid(store, create_session(store, -1))


def test_new_password_ends_sessions(store: Store) -> None:
    set_password(store, PASSWORD)
    token = create_session(store, 1)
    set_password(store, PASSWORD + "!")
    assert not session_valid(store, token)


def test_sessions_do_not_pile_up(store: Store) -> None:
    tokens = [create_session(store, 1) for _ in range(60)]
    assert sum(session_valid(store, token) for token in tokens) == 50
    assert session_valid(store, tokens[-1])
