"""What was answered lately, so that feedback can name it and the console can show it."""

from __future__ import annotations

import sqlite3
import time
from dataclasses import dataclass
from typing import Any

from appliance.store.db import Database
from appliance.store.normalise import text_key
from appliance.store.rows import from_json, to_json, valid_text

KEPT = 10_000


@dataclass(frozen=True)
class StoredCompletion:
    """An answer given.

    Attributes:
        query: the last user message.
        messages: the conversation without the answer. Query, response and messages are empty when
            the request opted out of being stored.
        adapter: what was in service; None is the base model.
        conversation: names the answers that belong together; None for one that is by itself.
        seconds: how long it took; None when nobody measured.
    """

    id: str
    created: float
    device: str | None
    model: str
    adapter: str | None
    query: str
    response: str
    messages: list[dict[str, Any]]
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    conversation: str | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Conversation:
    """A conversation by its newest answer.

    Attributes:
        title: the beginning of what was asked first in it.
        last: id of the answer it ends in.
        created: when that was given.
        adapter: who gave it; None is the base model.
    """

    name: str
    title: str
    last: str
    created: float
    adapter: str | None


TITLE = 200
"""Characters of a title: more than any list shows."""

_COLUMNS = ", ".join(StoredCompletion.__dataclass_fields__)
_FIRST_QUESTION = (
    "(SELECT json_extract(m.value, '$.content') FROM json_each(c.messages) m"
    " WHERE json_extract(m.value, '$.role') = 'user' ORDER BY m.key LIMIT 1)"
)


def _completion(row: sqlite3.Row) -> StoredCompletion:
    return StoredCompletion(**{**dict(row), "messages": from_json(row["messages"])})


class Completions:
    """The table `completions`; it keeps the last 10,000."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def record(
        self,
        id: str,
        created: float,
        device: str | None,
        model: str,
        adapter: str | None,
        query: str,
        response: str,
        messages: list[dict[str, Any]],
        finish_reason: str,
        prompt_tokens: int,
        completion_tokens: int,
        conversation: str | None = None,
        seconds: float | None = None,
    ) -> None:
        """Store an answer and forget the oldest ones. Recording an id again replaces it."""
        values = {
            "id": id,
            "created": created,
            "device": device,
            "model": model,
            "adapter": adapter,
            "query": valid_text(query, "query"),
            "response": valid_text(response, "response"),
            "messages": to_json(messages, "messages"),
            "finish_reason": finish_reason,
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "conversation": conversation,
            "seconds": seconds,
            "query_key": text_key(query),
            "response_key": text_key(response),
        }
        with self._db.transaction("completions") as tx:
            cursor = tx.execute(
                f"INSERT OR REPLACE INTO completions ({', '.join(values)})"
                f" VALUES ({', '.join('?' * len(values))})",
                tuple(values.values()),
            )
            tx.execute("DELETE FROM completions WHERE seq <= ?", ((cursor.lastrowid or 0) - KEPT,))

    def forget_before(self, seconds: float) -> int:
        """Delete the answers that are older than that; says how many."""
        with self._db.transaction("completions") as tx:
            return tx.execute("DELETE FROM completions WHERE created < ?", (time.time() - seconds,)).rowcount

    def get(self, completion_id: str, device: str | None = None) -> StoredCompletion | None:
        """The completion of that id; None when it is unknown or has been forgotten.

        Args:
            completion_id: which one.
            device: on whose behalf: it knows of its own only. None for the owner, who may see all.
        """
        row = self._db.one(
            f"SELECT {_COLUMNS} FROM completions WHERE id = ?1 AND (?2 IS NULL OR device = ?2)",
            (completion_id, device),
        )
        return None if row is None else _completion(row)

    def find(self, query: str, response: str, device: str | None = None) -> StoredCompletion | None:
        """The newest completion with this query and response, compared after normalisation.

        `device` as for `get`.
        """
        row = self._db.one(
            f"SELECT {_COLUMNS} FROM completions WHERE query_key = ?1 AND response_key = ?2 AND query != ''"
            " AND (?3 IS NULL OR device = ?3) ORDER BY seq DESC LIMIT 1",
            (text_key(query), text_key(response), device),
        )
        return None if row is None else _completion(row)

    def recent(self, limit: int = 50) -> list[StoredCompletion]:
        """The last completions, newest first."""
        rows = self._db.all(f"SELECT {_COLUMNS} FROM completions ORDER BY seq DESC LIMIT ?", (limit,))
        return [_completion(row) for row in rows]

    def conversations(self, limit: int = 50) -> list[Conversation]:
        """The conversations that have the newest answers, newest first."""
        rows = self._db.all(
            "SELECT c.conversation AS name, c.id AS last, c.created, c.adapter,"
            f" substr(coalesce({_FIRST_QUESTION}, c.query), 1, {TITLE}) AS title"
            " FROM (SELECT max(seq) AS seq FROM completions WHERE conversation IS NOT NULL"
            " GROUP BY conversation ORDER BY 1 DESC LIMIT ?) ends"
            " JOIN completions c ON c.seq = ends.seq ORDER BY c.seq DESC",
            (limit,),
        )
        return [Conversation(**dict(row)) for row in rows]

    def conversation(self, name: str) -> list[StoredCompletion]:
        """The answers of a conversation that are kept, oldest first, with those that were given anew."""
        rows = self._db.all(
            f"SELECT {_COLUMNS} FROM completions WHERE conversation = ? ORDER BY seq", (name,)
        )
        return [_completion(row) for row in rows]

    def end_of(self, conversation: str) -> str | None:
        """Id of the newest answer of a conversation; None when nothing of it is kept."""
        row = self._db.one(
            "SELECT id FROM completions WHERE conversation = ? ORDER BY seq DESC LIMIT 1", (conversation,)
        )
        return None if row is None else str(row["id"])

    def forget_conversation(self, name: str) -> int:
        """Delete the answers of a conversation; says how many there were.

        Feedback on them is an example of its own, and stays. `Database.scrub` takes the last traces of the
        text out of the file.
        """
        with self._db.transaction("completions") as tx:
            return tx.execute("DELETE FROM completions WHERE conversation = ?", (name,)).rowcount
