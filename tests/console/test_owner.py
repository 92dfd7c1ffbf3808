from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.errors import Conflict, InvalidRequest
from appliance.home import Home
from appliance.store import Store
from appliance.store.owner import (
    create_session,
    create_setup_token,
    end_other_sessions,
    end_session,
    list_sessions,
    password_set,
    session_valid,
    set_first_password,
    set_password,
    setup_token_valid,
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


def test_sessions_are_listed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_000_000.0]
    monkeypatch.setattr("appliance.store.owner.time.time", lambda: now[0])
    mine, phone = create_session(store, 1, "192.0.2.7"), create_session(store, 2)
    create_session(store, -1)
    now[0] += 299
    assert session_valid(store, phone)
    assert [session.seen for session in list_sessions(store, mine)] == [1_000_000.0] * 2  # not each time
    now[0] += 1
    assert session_valid(store, phone)
    first, second = list_sessions(store, mine)
    assert (first.mine, first.address, first.created, first.expires) == (True, "192.0.2.7", 1e6, 1e6 + 3600)
    assert (second.mine, second.address, second.seen) == (False, "", 1e6 + 300)
    now[0] += 3600
    assert [session.mine for session in list_sessions(store, mine)] == [False]


def test_sessions_of_an_earlier_version(store: Store) -> None:
    token = create_session(store, 1)
    text = store.settings.get("owner.sessions")
    assert text is not None
    store.settings.set("owner.sessions", text.replace(', "address": ""', ""))
    assert session_valid(store, token)
    assert list_sessions(store, token)[0].address == ""


def test_other_sessions_are_ended(store: Store) -> None:
    mine, *others = (create_session(store, 1) for _ in range(3))
    assert end_other_sessions(store, mine) == 2
    assert session_valid(store, mine)
    assert not any(session_valid(store, token) for token in others)
    assert end_other_sessions(store, mine) == 0
    assert end_other_sessions(store, "guess") == 1


def test_setup_token(store: Store, tmp_path: Path) -> None:
    assert not setup_token_valid(store, "")
    earlier, token = create_setup_token(store), create_setup_token(store)
    assert setup_token_valid(store, token)
    for wrong in (earlier, "", "guess", token[:-1], "\udc80"):
        assert not setup_token_valid(store, wrong)
    for path in tmp_path.glob("store.db*"):
        assert token.encode() not in path.read_bytes()
    set_password(store, PASSWORD)
    assert not setup_token_valid(store, token)


def test_the_first_password_is_set_once(store: Store) -> None:
    with pytest.raises(InvalidRequest):
        set_first_password(store, "short")
    planted = create_session(store, 1)
    set_first_password(store, PASSWORD)
    assert not session_valid(store, planted)
    with pytest.raises(Conflict):
        set_first_password(store, "another password")
    assert verify_password(store, PASSWORD)
