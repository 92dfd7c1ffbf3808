"""Who did what: an account of every act that changes how the appliance behaves."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, TypeAlias

from appliance.store.db import Database
from appliance.store.rows import from_json, to_json

KEPT = 100_000
"""Failed logins are audited too: without a limit anyone on the network could fill the disk."""


@dataclass(frozen=True)
class AuditEntry:
    """One act. `actor` is "owner", a device's name, or "appliance" for what it does by itself."""

    at: float
    actor: str
    action: str
    detail: dict[str, Any]


AuditList: TypeAlias = list[AuditEntry]


class Audit:
    """The table `audit`."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def add(self, actor: str, action: str, detail: dict[str, Any] | None = None) -> AuditEntry:
        """Write an entry."""
        entry = AuditEntry(time.time(), actor, action, detail or {})
        with self._db.transaction("audit") as tx:
            cursor = tx.execute(
                "INSERT INTO audit (at, actor, action, detail) VALUES (?, ?, ?, ?)",
                (entry.at, actor, action, to_json(entry.detail, "detail")),
            )
            tx.execute("DELETE FROM audit WHERE seq <= ?", ((cursor.lastrowid or 0) - KEPT,))
        return entry

    def list(self, limit: int = 100, offset: int = 0) -> AuditList:
        """A page of entries, newest first."""
        rows = self._db.all(
            "SELECT at, actor, action, detail FROM audit ORDER BY seq DESC LIMIT ? OFFSET ?", (limit, offset)
        )
        return [AuditEntry(row["at"], row["actor"], row["action"], from_json(row["detail"])) for row in rows]
