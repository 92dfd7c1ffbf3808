"""Small facts the appliance keeps for itself (the owner's password hash, a paused flag): text by key."""

from __future__ import annotations

from typing import cast

from appliance.store.db import Database


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
