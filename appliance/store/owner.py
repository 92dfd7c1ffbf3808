"""The owner's password, login sessions, and the link to choose the first password with.

All are kept as settings: `owner.password` holds an argon2id hash, `owner.sessions` a JSON object of
session digests, `owner.setup` the digest of the setup link's token. (`owner.known` is `known.py`'s.) The
tokens are known only to the browser and to the log; the store keeps their SHA-256, so a copy of the database
lets nobody in.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import argon2

from appliance.errors import Conflict, InvalidRequest, Unavailable
from appliance.store.known import KEY as KNOWN

if TYPE_CHECKING:
    from appliance.store import Store

logger = logging.getLogger(__name__)

SESSION_COOKIE = "shammah_session"
SECURE_COOKIE = "__Host-shammah_session"
"""Over HTTPS. By one name for both, a browser would refuse the cookie of plain HTTP after that of HTTPS."""
MIN_PASSWORD = 8
MAX_PASSWORD = 1024
"""Hashing cost grows with length: a megabyte of password must not buy a minute of CPU."""
SEEN_SECONDS = 300.0
"""When a session was last used is at most this stale: exact times would cost a disk flush a request."""
WRITE_WAIT = 1.0
"""Seconds that somebody who logs in or out waits, at most, for others who write to the store."""
_MAX_SESSIONS = 50
_PASSWORD = "owner.password"
_SESSIONS = "owner.sessions"
_SETUP = "owner.setup"
_hasher = argon2.PasswordHasher()


@dataclass(frozen=True)
class Session:
    """A browser that is logged in.

    Attributes:
        created: when it logged in.
        seen: when it was last used, to within minutes.
        expires: when it has to log in again.
        address: where it logged in from; empty when that is not known.
        mine: it is the one that asks.
    """

    created: float
    seen: float
    expires: float
    address: str
    mine: bool


@dataclass
class Unsaved:
    """What the store could not take: a full disk must not keep out the one who is to free it.

    It is lost with the process, and then the owner logs in again.

    Attributes:
        sessions: that have begun, like those in the store.
        ended: digests of sessions that were ended.
    """

    sessions: dict[str, dict[str, Any]] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)


def password_set(store: Store) -> bool:
    """Whether the owner has chosen a password; before that only this machine may manage the box."""
    return store.settings.get(_PASSWORD) is not None


def set_password(store: Store, text: str) -> None:
    """Set or replace the owner's password, end every session and the setup link, and forget known browsers.

    Raises:
        InvalidRequest: the password is too short or too long.
    """
    hashed = _hashed(text)
    with store.transaction():
        _keep_password(store, hashed)
    store.unsaved.sessions = {}


def set_first_password(store: Store, text: str) -> None:
    """Set the owner's password if there is none: of two who try at once, one is told to log in.

    Raises:
        InvalidRequest: the password is too short or too long.
        Conflict: there is a password.
    """
    hashed = _hashed(text)
    with store.transaction():
        if password_set(store):
            raise Conflict("This box has a password already: log in with it.", param="password")
        _keep_password(store, hashed)


def create_setup_token(store: Store) -> str:
    """The secret of a new setup link. An earlier one is worthless from now on."""
    token = secrets.token_urlsafe(32)
    store.settings.set(_SETUP, _digest(token))
    return token


def setup_token_valid(store: Store, token: str) -> bool:
    """Whether `token` is that of the present setup link, and no password has been set since."""
    wanted = store.settings.get(_SETUP)
    return wanted is not None and not password_set(store) and hmac.compare_digest(wanted, _digest(token))


def verify_password(store: Store, text: str) -> bool:
    """Check a password against the stored hash. Takes tens of milliseconds on purpose."""
    hashed = store.settings.get(_PASSWORD)
    if hashed is None or len(text) > MAX_PASSWORD:
        return False
    try:
        _hasher.verify(hashed, text)
    except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
        return False
    if _hasher.check_needs_rehash(hashed):
        with suppress(Unavailable):
            store.settings.set(_PASSWORD, _hasher.hash(text))
    return True


def create_session(store: Store, hours: float, address: str = "") -> str:
    """Start a session and return its token, to be set as the browser's cookie.

    If the store cannot take it, it lasts no longer than this process.
    """
    token = secrets.token_urlsafe(32)
    now = time.time()
    fresh = {"created": now, "expires": now + hours * 3600, "address": address}
    try:
        with store.transaction(WRITE_WAIT):
            _write(store, {**_newest(_live(_read(store), now)), _digest(token): fresh})
    except Unavailable as error:
        logger.warning("A session is kept in memory only: %s", error)
        unsaved = store.unsaved
        unsaved.sessions = {**_newest(_live(unsaved.sessions, now)), _digest(token): fresh}
    return token


def session_token(cookies: Any) -> str | None:
    """The token of the session, out of a request's cookies."""
    token = cookies.get(SECURE_COOKIE) or cookies.get(SESSION_COOKIE)
    return str(token) if token else None


def session_valid(store: Store, token: str | None) -> bool:
    """Whether `token` names a session that has not expired or been ended. Notes that it was used."""
    if not token:
        return False
    now, digest = time.time(), _digest(token)
    if digest in store.unsaved.ended:
        return False
    if (unsaved := store.unsaved.sessions.get(digest)) is not None:
        unsaved["seen"] = now
        return float(unsaved["expires"]) > now
    session = _read(store).get(digest)
    if session is None or session["expires"] <= now:
        return False
    if not 0 <= now - _seen(session) < SEEN_SECONDS:
        # A full disk is no reason to lock the owner out.
        with suppress(Unavailable), store.transaction(WRITE_WAIT):
            sessions = _read(store)
            if digest not in sessions:
                return False  # ended a moment ago
            sessions[digest]["seen"] = now
            _write(store, sessions)
    return True


def list_sessions(store: Store, token: str | None) -> list[Session]:
    """The sessions that are open, last used first; `token` is that of the one who asks."""
    mine = _digest(token) if token else ""
    found = [
        Session(item["created"], _seen(item), item["expires"], item.get("address", ""), digest == mine)
        for digest, item in _live({**_read(store), **store.unsaved.sessions}, time.time()).items()
        if digest not in store.unsaved.ended
    ]
    return sorted(found, key=lambda session: (session.mine, session.seen), reverse=True)


def end_other_sessions(store: Store, token: str) -> int:
    """End every session but that of `token`; returns how many there were."""

    def mine(sessions: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        return {digest: item for digest, item in sessions.items() if digest == _digest(token)}

    with store.transaction():
        sessions = _live(_read(store), time.time())
        _write(store, mine(sessions))
    ended = len(sessions) - len(mine(sessions))
    ended += len(store.unsaved.sessions) - len(mine(store.unsaved.sessions))
    store.unsaved.sessions = mine(store.unsaved.sessions)
    return ended


def end_session(store: Store, token: str) -> None:
    """Log out: the token is worthless from now on."""
    digest = _digest(token)
    if store.unsaved.sessions.pop(digest, None) is not None:
        return
    try:
        with store.transaction(WRITE_WAIT):
            sessions = _live(_read(store), time.time())
            sessions.pop(digest, None)
            _write(store, sessions)
    except Unavailable as error:
        logger.warning("That a session was ended is kept in memory only: %s", error)
        store.unsaved.ended.add(digest)


def _hashed(text: str) -> str:
    if not MIN_PASSWORD <= len(text) <= MAX_PASSWORD:
        raise InvalidRequest(
            f"The password must have {MIN_PASSWORD} to {MAX_PASSWORD} characters.", param="password"
        )
    return _hasher.hash(text)


def _keep_password(store: Store, hashed: str) -> None:
    store.settings.set(_PASSWORD, hashed)
    store.settings.delete(_SESSIONS)
    store.settings.delete(_SETUP)
    store.settings.delete(KNOWN)


def _digest(token: str) -> str:
    # Half a surrogate pair can come from outside, and is no token.
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _read(store: Store) -> dict[str, dict[str, Any]]:
    text = store.settings.get(_SESSIONS)
    return dict(json.loads(text)) if text else {}


def _write(store: Store, sessions: dict[str, dict[str, Any]]) -> None:
    store.settings.set(_SESSIONS, json.dumps(sessions))


def _newest(sessions: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Room for one more."""
    return dict(sorted(sessions.items(), key=lambda item: item[1]["created"])[-(_MAX_SESSIONS - 1) :])


def _seen(session: dict[str, Any]) -> float:
    return float(session.get("seen", session["created"]))


def _live(sessions: dict[str, dict[str, Any]], now: float) -> dict[str, dict[str, Any]]:
    return {digest: session for digest, session in sessions.items() if session["expires"] > now}
