"""Who did what: an account of every act that changes how the appliance behaves."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, TypeAlias

from appliance.store.db import Database
from appliance.store.rows import from_json, to_json

KEPT = 100_000
"""Failed logins are audited too: without a limit anyone on the network could fill the disk."""


@dataclass(frozen=True)
class AuditEntry:
    """One act.

    Attributes:
        actor: "owner", a device's name, an address that tried to log in, or "appliance" for what it does
            by itself.
        seq: rises with time.
    """

    at: float
    actor: str
    action: str
    detail: dict[str, Any]
    seq: int


AuditList: TypeAlias = list[AuditEntry]


class Audit:
    """The table `audit`."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def add(self, actor: str, action: str, detail: dict[str, Any] | None = None) -> AuditEntry:
        """Write an entry."""
        at, detail = time.time(), detail or {}
        with self._db.transaction("audit") as tx:
            cursor = tx.execute(
                "INSERT INTO audit (at, actor, action, detail) VALUES (?, ?, ?, ?)",
                (at, actor, action, to_json(detail, "detail")),
            )
            seq = cursor.lastrowid or 0
            tx.execute("DELETE FROM audit WHERE seq <= ?", (seq - KEPT,))
        return AuditEntry(at, actor, action, detail, seq)

    def forget_before(self, seconds: float) -> int:
        """Delete the entries that are older than that; says how many."""
        with self._db.transaction("audit") as tx:
            return tx.execute("DELETE FROM audit WHERE at < ?", (time.time() - seconds,)).rowcount

    def list(
        self,
        limit: int = 100,
        offset: int = 0,
        *,
        before: int | None = None,
        actor: str | None = None,
        families: Collection[str] = (),
        search: str = "",
    ) -> AuditList:
        """A page of entries, newest first.

        Args:
            limit: entries at most.
            offset: entries left out.
            before: only entries with a lower `seq`: how pages go on.
            actor: only those of one actor.
            families: only acts whose name begins with one of these words and a dot, or is one.
            search: only entries that have this text in actor, name or details, in whatever case.
        """
        conditions, parameters = ["TRUE"], list[object]()
        if before is not None:
            conditions.append("seq < ?")
            parameters.append(before)
        if actor is not None:
            conditions.append("actor = ?")
            parameters.append(actor)
        if families:
            one = "action = ? OR substr(action, 1, length(?) + 1) = ? || '.'"
            conditions.append("(" + " OR ".join([one] * len(families)) + ")")
            parameters += [family for family in families for _ in range(3)]
        if search:
            conditions.append("instr(lower(actor || ' ' || action || ' ' || detail), lower(?)) > 0")
            parameters.append(search)
        rows = self._db.all(
            f"SELECT at, actor, action, detail, seq FROM audit WHERE {' AND '.join(conditions)}"
            " ORDER BY seq DESC LIMIT ? OFFSET ?",
            (*parameters, limit, offset),
        )
        return [AuditEntry(**{**dict(row), "detail": from_json(row["detail"])}) for row in rows]
