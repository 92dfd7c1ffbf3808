"""Browsers and addresses that have logged in before: others' failures must not keep them out.

A browser is known by a cookie of its own, of which the store keeps the SHA-256, as `owner.known`. It lets
nobody in: who has it may try the password while strangers have to wait, and has to wait for failures of its
own. It outlasts sessions and restarts, and ends with the password.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import time
from typing import TYPE_CHECKING, Any

from appliance.errors import Unavailable

if TYPE_CHECKING:
    from appliance.store import Store

logger = logging.getLogger(__name__)

KEY = "owner.known"
COOKIE = "shammah_known"
SECURE_COOKIE = "__Host-shammah_known"
"""Over HTTPS, for the reason that the session has two names."""
KNOWN_SECONDS = 400 * 86_400
"""Browsers keep no cookie for longer."""
MOST = 50
WRITE_WAIT = 1.0
Entries = dict[str, dict[str, Any]]


def cookie_of(cookies: Any) -> str:
    """What a browser is known by, out of a request's cookies; empty when it has none."""
    return str(cookies.get(SECURE_COOKIE) or cookies.get(COOKIE) or "")


def remember(store: Store, cookie: str, address: str) -> str | None:
    """Know a browser that has just logged in; returns its new cookie, None when the store takes nothing.

    Args:
        store: where it is kept.
        cookie: the one it had, which ends; empty for none.
        address: where it has logged in from.
    """
    token = secrets.token_urlsafe(32)
    try:
        with store.transaction(WRITE_WAIT):
            known = _read(store)
            known.pop(_digest(cookie), None)
            known[_digest(token)] = {"address": address, "at": time.time()}
            newest = sorted(known.items(), key=lambda item: item[1]["at"])[-MOST:]
            store.settings.set(KEY, json.dumps(dict(newest)))
    except Unavailable as error:
        logger.warning("This browser is not remembered: %s", error)
        return None
    return token


def known_as(store: Store, cookie: str, address: str) -> str | None:
    """What a browser or its address is called among those that have logged in before; None for a stranger."""
    known = _read(store)
    digest = _digest(cookie)
    if cookie and digest in known:
        return f"browser {digest}"
    return f"address {address}" if address in {entry["address"] for entry in known.values()} else None


def _read(store: Store) -> Entries:
    text = store.settings.get(KEY)
    since = time.time() - KNOWN_SECONDS
    return {digest: entry for digest, entry in json.loads(text or "{}").items() if entry["at"] > since}


def _digest(cookie: str) -> str:
    return hashlib.sha256(cookie.encode("utf-8", "surrogatepass")).hexdigest()
