"""Small facts the appliance keeps for itself (the owner's password hash, a paused flag): text by key."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import cast

from appliance.store.db import Database
from appliance.store.footing import Rescued

_RESCUED = "store.rescued"


class Settings:
    """The table `settings`."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def get(self, key: str) -> str | None:
        """The value of `key`; None when it is not set."""
        return cast("str | None", self._db.value("SELECT value FROM settings WHERE key = ?", (key,)))

    def set(self, key: str, value: str) -> None:
        """Set `key`."""
        with self._db.transaction("settings") as tx:
            tx.execute(
                "INSERT INTO settings (key, value) VALUES (?, ?)"
                " ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                (key, value),
            )

    def delete(self, key: str) -> None:
        """Unset `key`, if it is set."""
        with self._db.transaction("settings") as tx:
            tx.execute("DELETE FROM settings WHERE key = ?", (key,))


def keep_rescue(settings: Settings, rescued: Rescued) -> None:
    """Remember what was done to the store's files, for the doctor to tell of."""
    settings.set(_RESCUED, json.dumps(asdict(rescued)))


def last_rescue(settings: Settings) -> Rescued | None:
    """What was done to them last, if anything."""
    text = settings.get(_RESCUED)
    if text is None:
        return None
    found = json.loads(text)
    return Rescued(found["at"], tuple(found["files"]), found["aside"])
