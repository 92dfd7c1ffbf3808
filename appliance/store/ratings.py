"""What people said of an adapter's answers: feedback, joined with the answers it was given on."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from appliance.store.db import Database
from appliance.store.example import Kind


@dataclass(frozen=True)
class Vote:
    """The last word on one answer.

    Attributes:
        note: what the person wrote with it.
        giver: the device it is from; None for the owner and who needs no key.
    """

    kind: Kind
    note: str | None
    giver: str | None = None


class Ratings:
    """Reads `completions` and `examples` together."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def answers(self, adapter: str | None, since: float = 0.0, before: float = inf) -> int:
        """How many of the kept answers this adapter (None: base) gave in that time."""
        return int(
            self._db.value(
                "SELECT count(*) FROM completions WHERE adapter IS ? AND created >= ? AND created < ?",
                (adapter, since, before),
            )
        )

    def votes(self, adapter: str | None, since: float = 0.0, before: float = inf) -> list[Vote]:
        """Feedback on these answers, whenever it was given: one vote an answer, the last counts.

        Whoever got the answer votes, and the owner does; another device has no say in it.
        """
        rows = self._db.all(
            "SELECT e.kind, e.feedback, e.giver, max(e.seq) FROM completions c"
            " JOIN examples e ON e.completion_id = c.id AND (e.giver IS NULL OR e.giver = c.device)"
            " WHERE e.kind != 'automatic' AND c.adapter IS ? AND c.created >= ? AND c.created < ?"
            " GROUP BY c.id",
            (adapter, since, before),
        )
        return [Vote(row["kind"], row["feedback"], row["giver"]) for row in rows]

    def askers(self, since: float) -> int:
        """How many different ones have asked since then: devices, and who needs no key as one.

        What the owner tries in the console is not counted: that is no device in use.
        """
        return int(
            self._db.value(
                "SELECT count(DISTINCT coalesce(device, '')) FROM completions"
                " WHERE created >= ? AND (device IS NOT NULL OR conversation IS NULL)",
                (since,),
            )
        )
