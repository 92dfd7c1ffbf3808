"""Forgetting: where the text of an example is, deleting it, and what is remembered instead.

What is remembered of an example is its id, whose it was and which runs learned from it, so that these
can be undone later; and of an answer that was rejected its fingerprint, so that it stays rejected.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from appliance.store.db import Database
from appliance.store.normalise import message_text, normalise, text_key
from appliance.store.rows import from_json

SENTENCE = 20
"""From this many characters on, a message means the same in any conversation; "Why?" does not."""
_PAGE = 500
_THESE = "(SELECT value FROM json_each(?))"

Question: TypeAlias = tuple[str, str | None]


@dataclass(frozen=True)
class Traces:
    """Ids of the examples and completions that hold a text."""

    examples: frozenset[str]
    completions: frozenset[str]


class Forgotten:
    """The table `forgotten`, and deleting from those that hold text."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def traces(self, ids: Collection[str]) -> Traces:
        """All that holds the text of these examples, whoever said it.

        That is: what asks the same question (a short one: in the same conversation), later turns of a
        conversation in which it was asked, feedback on the same completion, and what was superseded by
        any of these.
        """
        asked: set[Question] = set()
        for row in self._db.all(f"SELECT query, messages FROM examples WHERE id IN {_THESE}", (_list(ids),)):
            messages = from_json(row["messages"]) or [{"role": "user", "content": row["query"]}]
            asked |= set(list(_questions(messages))[-1:])
        examples, completions = set(ids), set[str]()
        for table, found in (("examples", examples), ("completions", completions)):
            for row in self._scan(table):
                if not asked.isdisjoint(_questions(from_json(row["messages"]))):
                    found.add(row["id"])
        while True:
            rows = self._db.all(
                f"SELECT id, completion_id FROM examples WHERE id IN {_THESE}"
                f" OR superseded_by IN {_THESE} OR completion_id IN {_THESE}",
                (_list(examples), _list(examples), _list(completions)),
            )
            more = {row["id"] for row in rows}
            completions |= {row["completion_id"] for row in rows} - {None}
            if more <= examples:
                return Traces(frozenset(more), frozenset(completions))
            examples |= more

    def traces_of_devices(self, devices: Collection[str]) -> Traces:
        """All that these devices said and were answered, and feedback on it."""
        completions = {
            row["id"]
            for row in self._db.all(f"SELECT id FROM completions WHERE device IN {_THESE}", (_list(devices),))
        }
        rows = self._db.all(
            f"SELECT id, completion_id FROM examples WHERE device IN {_THESE} OR completion_id IN {_THESE}",
            (_list(devices), _list(completions)),
        )
        completions |= {row["completion_id"] for row in rows} - {None}
        return Traces(frozenset(row["id"] for row in rows), frozenset(completions))

    def erase(self, traces: Traces, runs: Mapping[str, Collection[str]]) -> None:
        """Delete the rows, and note for each example the runs that learned from it.

        What was superseded by one of them stays superseded, and rejected answers stay rejected.
        """
        gone = _list(traces.examples)
        with self._db.transaction("examples", "completions", "rejected", "forgotten") as tx:
            now = time.time()
            rows = tx.execute(f"SELECT id, device FROM examples WHERE id IN {_THESE}", (gone,)).fetchall()
            tx.executemany(
                "INSERT OR REPLACE INTO forgotten (example_id, device, at, runs) VALUES (?, ?, ?, ?)",
                [(row["id"], row["device"], now, _list(runs.get(row["id"], ()))) for row in rows],
            )
            tx.execute(
                f"UPDATE rejected SET answer = '' WHERE example_id IN {_THESE}"
                f" OR query_key IN (SELECT query_key FROM examples WHERE id IN {_THESE})",
                (gone, gone),
            )
            tx.execute(f"UPDATE rejected SET example_id = NULL WHERE example_id IN {_THESE}", (gone,))
            tx.execute(f"UPDATE examples SET superseded_by = id WHERE superseded_by IN {_THESE}", (gone,))
            tx.execute(f"DELETE FROM examples WHERE id IN {_THESE}", (gone,))
            tx.execute(f"DELETE FROM completions WHERE id IN {_THESE}", (_list(traces.completions),))

    def known(self, ids: Collection[str]) -> set[str]:
        """Those of these ids that are of forgotten examples."""
        rows = self._db.all(f"SELECT example_id FROM forgotten WHERE example_id IN {_THESE}", (_list(ids),))
        return {row[0] for row in rows}

    def runs(self, ids: Collection[str] = (), devices: Collection[str] = ()) -> set[str]:
        """The runs that learned from these forgotten examples, or from those of these devices."""
        rows = self._db.all(
            "SELECT DISTINCT r.value FROM forgotten f, json_each(f.runs) r"
            f" WHERE f.example_id IN {_THESE} OR f.device IN {_THESE}",
            (_list(ids), _list(devices)),
        )
        return {row[0] for row in rows}

    def _scan(self, table: str) -> Iterator[sqlite3.Row]:
        """Id and messages of all rows, a page at a time: memory is short."""
        seq = 0
        while rows := self._db.all(
            f"SELECT seq, id, messages FROM {table} WHERE seq > ? ORDER BY seq LIMIT {_PAGE}", (seq,)
        ):
            yield from rows
            seq = rows[-1]["seq"]


def _questions(messages: list[dict[str, Any]]) -> Iterator[Question]:
    """What the user asked in a conversation: each message, with what the user said before if it is short."""
    earlier: list[str] = []
    for message in messages:
        if message.get("role") == "user":
            text = normalise(message_text(message))
            alone = len(text) >= SENTENCE
            yield text_key(text), None if alone else "\n".join(earlier)
            earlier.append(text)


def _list(values: Collection[str]) -> str:
    return json.dumps(sorted(values))
