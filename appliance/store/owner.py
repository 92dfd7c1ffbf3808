"""The owner's password and login sessions.

Both are kept as settings: `owner.password` holds an argon2id hash, `owner.sessions` a JSON object
of session digests. A session's token is known only to the browser; the store keeps its SHA-256,
so a copy of the database lets nobody in.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from typing import TYPE_CHECKING, Any

import argon2

from appliance.errors import InvalidRequest

if TYPE_CHECKING:
    from appliance.store import Store

SESSION_COOKIE = "shammah_session"
MIN_PASSWORD = 8
MAX_PASSWORD = 1024
"""Hashing cost grows with length: a megabyte of password must not buy a minute of CPU."""
_MAX_SESSIONS = 50
_PASSWORD = "owner.password"
_SESSIONS = "owner.sessions"
_hasher = argon2.PasswordHasher()


def password_set(store: Store) -> bool:
    """Whether the owner has chosen a password; before that only this machine may manage the box."""
    return store.settings.get(_PASSWORD) is not None


def set_password(store: Store, text: str) -> None:
    """Set or replace the owner's password and end every session.

    Raises:
        InvalidRequest: the password is too short or too long.
    """
    if not MIN_PASSWORD <= len(text) <= MAX_PASSWORD:
        raise InvalidRequest(
            f"The password must have {MIN_PASSWORD} to {MAX_PASSWORD} characters.", param="password"
        )
    hashed = _hasher.hash(text)
    with store.transaction():
        store.settings.set(_PASSWORD, hashed)
        store.settings.delete(_SESSIONS)


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
        store.settings.set(_PASSWORD, _hasher.hash(text))
    return True


def create_session(store: Store, hours: float) -> str:
    """Start a session and return its token, to be set as the browser's cookie."""
    token = secrets.token_urlsafe(32)
    now = time.time()
    with store.transaction():
        sessions = _live(_read(store), now)
        newest = sorted(sessions.items(), key=lambda item: item[1]["created"])[-(_MAX_SESSIONS - 1) :]
        sessions = dict(newest)
        sessions[_digest(token)] = {"created": now, "expires": now + hours * 3600}
        store.settings.set(_SESSIONS, json.dumps(sessions))
    return token


def session_valid(store: Store, token: str | None) -> bool:
    """Whether `token` names a session that has not expired or been ended."""
    if not token:
        return False
    session = _read(store).get(_digest(token))
    return session is not None and session["expires"] > time.time()


def end_session(store: Store, token: str) -> None:
    """Log out: the token is worthless from now on."""
    with store.transaction():
        sessions = _live(_read(store), time.time())
        sessions.pop(_digest(token), None)
        store.settings.set(_SESSIONS, json.dumps(sessions))


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _read(store: Store) -> dict[str, dict[str, Any]]:
    text = store.settings.get(_SESSIONS)
    return dict(json.loads(text)) if text else {}


def _live(sessions: dict[str, dict[str, Any]], now: float) -> dict[str, dict[str, Any]]:
    return {digest: session for digest, session in sessions.items() if session["expires"] > now}
