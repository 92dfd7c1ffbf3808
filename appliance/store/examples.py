"""Examples: what the appliance learns from, and the states one goes through.

    pending ──hold──▶ training ──mark_used──▶ used
       ▲  ◀──release──┘     └──park──▶ parked ──hold──▶ training
    review (what a person has to look at first: a critique without an accepted target, a dispute)

Nothing goes from review to pending but by a person, and no run is given a draft whatever its state: what
comes back from a run or its end comes back to where it may be (`_BACK`).

`superseded` and `excluded` are ends: replaced by newer feedback, and taken out, by a person or because the
adapter that gave the answer was given up.
"""

from __future__ import annotations

import json
import random
import secrets
import sqlite3
import time
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias, cast

from appliance.errors import Conflict, NotFound
from appliance.store.db import Database
from appliance.store.example import (
    COLUMNS,
    DRAFT_NOTE,
    STATES,
    Example,
    ExampleList,
    Kind,
    NewExample,
    State,
    example_from,
)
from appliance.store.normalise import context_key, normalise, text_key
from appliance.store.rows import finite, to_json, update_row, valid_text

__all__ = ["DRAFT_NOTE", "STATES", "Example", "Examples", "Kind", "NewExample", "State"]

_CHANGEABLE = {"state", "kind", "target", "weight", "feedback", "correction", "rating", "finish_reason",
               "note", "run_id", "completion_id"}  # fmt: skip
_MIRRORED = {"weight", "feedback", "correction", "rating"}
DRAFTED = f"coalesce(note, '') LIKE '{DRAFT_NOTE}%'"
_BACK = f"CASE WHEN {DRAFTED} THEN 'review' ELSE 'pending' END"
_NEEDS_REVIEW = f"(state = 'review' OR (state = 'pending' AND {DRAFTED}))"
NOT_REJECTED = (
    "NOT EXISTS (SELECT 1 FROM rejected r WHERE r.query_key = e.query_key AND r.answer_key = e.target_key"
    " AND r.device IN ('', coalesce(e.giver, '')))"
)
"""Of an example `e`: nobody whose word counts for it has said no to what it teaches."""
_TEACHERS = "(SELECT id FROM devices WHERE teach)"
ROW_BYTES = 500
"""What a row takes beside its texts, about."""
REVIEWED = "reviewed"
"""Note of an example whose target a person has said yes to."""
_TAUGHT = "kind IN ('correction', 'critique')"
_REPLAYABLE = (
    "state = 'used' AND run_id IN (SELECT value FROM json_each(?))"
    f" AND superseded_by IS NULL AND left_out IS NULL AND {NOT_REJECTED}"
)

QueueIndex: TypeAlias = list[tuple[int, int]]
Messages: TypeAlias = list[dict[str, Any]]


class Examples:
    """The table `examples`, and `rejected`: the answers people have said no to."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def add(
        self,
        new: NewExample,
        unmasked: NewExample | None = None,
        *,
        id: str | None = None,
        created: float | None = None,
    ) -> Example:
        """Store an example; it is on disk when this returns.

        Args:
            new: what to store.
            unmasked: the same before private texts in it were masked. None of it is stored, but
                feedback finds the example by hashes of what was really said.
            id: its id, when it has one already; nothing in the store may have it.
            created: when it was really said, when that was not just now.

        Raises:
            InvalidRequest: a text is not valid Unicode, or the weight not finite.
            StorageFull: the disk is full; nothing was stored.
        """
        example = Example(
            id=id or f"ex_{secrets.token_hex(12)}",
            created=time.time() if created is None else created,
            kind=new.kind,
            state=new.state,
            query=valid_text(new.query, "query"),
            response=valid_text(new.response, "response"),
            target=None if new.target is None else valid_text(new.target, "correction"),
            weight=finite(new.weight, "weight"),
            feedback=None if new.feedback is None else valid_text(new.feedback, "feedback"),
            messages=new.messages,
            correction=None if new.correction is None else valid_text(new.correction, "correction"),
            rating=new.rating,
            finish_reason=new.finish_reason,
            device=new.device,
            source=new.source,
            completion_id=new.completion_id,
            run_id=None,
            note=new.note,
            masked=new.masked,
            giver=new.giver,
        )
        said = unmasked or new
        values = {name: getattr(example, name) for name in Example.__dataclass_fields__}
        values |= {
            "messages": to_json(example.messages, "messages"),
            "masked": None if example.masked is None else to_json(example.masked, "masked"),
            "query_key": text_key(said.query),
            "response_key": text_key(said.response),
            "target_key": None if said.target is None else text_key(said.target),
            "context_key": context_key(said.messages),
            "size": size_of(new),
        }
        with self._db.transaction("examples") as tx:
            tx.execute(
                f"INSERT INTO examples ({', '.join(values)}) VALUES ({', '.join('?' * len(values))})",
                tuple(values.values()),
            )
        return example

    def get(self, example_id: str) -> Example:
        """The example of that id.

        Raises:
            NotFound: there is none.
        """
        row = self._db.one(f"SELECT {COLUMNS} FROM examples WHERE id = ?", (example_id,))
        if row is None:
            raise NotFound(f"There is no example {example_id!r}.", param="id")
        return example_from(row)

    def list(
        self, state: State | None = None, limit: int = 50, offset: int = 0, newest_first: bool = True
    ) -> ExampleList:
        """A page of examples, of one state or of all."""
        order = "DESC" if newest_first else "ASC"
        return self._select(
            f"WHERE (?1 IS NULL OR state = ?1) ORDER BY seq {order} LIMIT ?2 OFFSET ?3",
            (state, limit, offset),
        )

    def review(self, limit: int = 50, offset: int = 0) -> ExampleList:
        """Critiques a person should look at, newest first: without a target, or with a drafted one."""
        return self._select(f"WHERE {_NEEDS_REVIEW} ORDER BY seq DESC LIMIT ? OFFSET ?", (limit, offset))

    def undrafted(self, limit: int = 100) -> ExampleList:
        """Critiques that the model has not tried to draft a target for, newest first."""
        return self._select(
            "WHERE state = 'review' AND target IS NULL AND note IS NULL ORDER BY seq DESC LIMIT ?", (limit,)
        )

    def review_count(self) -> int:
        """How many examples `review` would list."""
        return int(self._db.value(f"SELECT count(*) FROM examples WHERE {_NEEDS_REVIEW}"))

    def count(self, *states: State) -> int:
        """How many examples are in these states; in any, when none is given."""
        return int(
            self._db.value(
                "SELECT count(*) FROM examples WHERE state IN (SELECT value FROM json_each(?))",
                (json.dumps(states or STATES),),
            )
        )

    def counts(self) -> dict[State, int]:
        """How many examples each state has, zeros included."""
        found = dict.fromkeys(STATES, 0)
        for row in self._db.all("SELECT state, count(*) FROM examples GROUP BY state"):
            found[cast(State, row[0])] = row[1]
        return found

    def counts_of(self, device: str) -> dict[State, int]:
        """The same of what one device asked and said."""
        found = dict.fromkeys(STATES, 0)
        for row in self._db.all(
            "SELECT state, count(*) FROM examples WHERE giver = ? GROUP BY state", (device,)
        ):
            found[cast(State, row[0])] = row[1]
        return found

    def any_in_review(self, ids: Iterable[str]) -> bool:
        """Whether one of these waits for a person."""
        return bool(
            self._db.value(
                "SELECT count(*) FROM examples WHERE state = 'review'"
                " AND id IN (SELECT value FROM json_each(?))",
                (json.dumps([*ids]),),
            )
        )

    def count_of_run(self, run_id: str, device: str) -> int:
        """How many of what a run holds, used or parked are from one device."""
        return int(
            self._db.value("SELECT count(*) FROM examples WHERE run_id = ? AND giver = ?", (run_id, device))
        )

    def oldest_pending(self, device: str | None = None) -> float | None:
        """When the longest waiting pending example was created; of one device, or of all."""
        return cast(
            "float | None",
            self._db.value(
                "SELECT min(created) FROM examples WHERE state = 'pending' AND (?1 IS NULL OR giver = ?1)",
                (device,),
            ),
        )

    def pending(self, limit: int | None = None) -> ExampleList:
        """Pending examples, oldest first."""
        return self._select("WHERE state = 'pending' ORDER BY seq LIMIT ?", (-1 if limit is None else limit,))

    # -- the life of a batch ------------------------------------------------------------------

    def hold(self, run_id: str, ids: Iterable[str]) -> ExampleList:
        """Give waiting examples to a run: pending ones, or parked ones that a person wants tried again.

        Returns:
            Those it got, oldest first: an example that feedback has superseded since the caller
            looked is not among them.

        Raises:
            NotFound: there is no such run.
        """
        with self._db.transaction("examples") as tx:
            if tx.execute("SELECT 1 FROM runs WHERE id = ?", (run_id,)).fetchone() is None:
                raise NotFound(f"There is no run {run_id!r}.", param="run")
            wanted = json.dumps([*ids])
            tx.execute(
                "UPDATE examples SET state = 'training', run_id = ?"
                f" WHERE state IN ('pending', 'parked') AND NOT ({DRAFTED})"
                " AND id IN (SELECT value FROM json_each(?))",
                (run_id, wanted),
            )
            return self._select(
                "WHERE state = 'training' AND run_id = ?"
                " AND id IN (SELECT value FROM json_each(?)) ORDER BY seq",
                (run_id, wanted),
            )

    def held(self, run_id: str) -> ExampleList:
        """The examples a run holds, oldest first."""
        return self._select("WHERE state = 'training' AND run_id = ? ORDER BY seq", (run_id,))

    def of_run(self, run_id: str, limit: int = 50, offset: int = 0) -> ExampleList:
        """A page of the examples that a run holds, used or parked, oldest first."""
        return self._select("WHERE run_id = ? ORDER BY seq LIMIT ? OFFSET ?", (run_id, limit, offset))

    def runs_that_hold(self) -> set[str]:
        """The runs with examples that are not learned: being trained on, or parked."""
        rows = self._db.all(
            "SELECT DISTINCT run_id FROM examples"
            " WHERE state IN ('training', 'parked') AND run_id IS NOT NULL"
        )
        return {row[0] for row in rows}

    def waiting(self, ids: Iterable[str], run_id: str) -> tuple[str, ...]:
        """Which of these, and of those a run has parked, are pending or parked; oldest first."""
        rows = self._db.all(
            f"SELECT id FROM examples WHERE state IN ('pending', 'parked') AND NOT ({DRAFTED}) AND id IN"
            " (SELECT value FROM json_each(?) UNION SELECT id FROM examples WHERE run_id = ?) ORDER BY seq",
            (json.dumps([*ids]), run_id),
        )
        return tuple(row[0] for row in rows)

    def leave_out(self, run_id: str, reasons: Mapping[str, str]) -> None:
        """Note which of the examples a run holds it does not train on, and why.

        They stay with the run and share the fate of its batch, but are never replayed.
        """
        with self._db.transaction("examples") as tx:
            tx.executemany(
                "UPDATE examples SET left_out = ? WHERE id = ? AND state = 'training' AND run_id = ?",
                [(reason, example_id, run_id) for example_id, reason in reasons.items()],
            )

    def release(self, run_id: str) -> int:
        """Put what a run holds back into the queue; says how many are pending again.

        What feedback has superseded in the meantime does not come back.
        """
        with self._db.transaction("examples") as tx:
            self._end_superseded(tx, run_id)
            return tx.execute(
                f"UPDATE examples SET state = {_BACK}, run_id = NULL, left_out = NULL"
                " WHERE state = 'training' AND run_id = ?",
                (run_id,),
            ).rowcount

    def mark_used(self, run_id: str) -> int:
        """What a run holds has been learned, or was left out for good; says how many."""
        with self._db.transaction("examples") as tx:
            return tx.execute(
                "UPDATE examples SET state = 'used' WHERE state = 'training' AND run_id = ?", (run_id,)
            ).rowcount

    def exclude_answers(self, adapter: str, since: float = 0.0) -> int:
        """Keep out of the queue what an adapter that was given up has answered since then.

        What people said of these answers stays. Says how many left the queue.
        """
        with self._db.transaction("examples") as tx:
            return tx.execute(
                "UPDATE examples SET state = 'excluded', run_id = NULL, note = ?"
                " WHERE state IN ('pending', 'training') AND kind = 'automatic' AND completion_id IN"
                " (SELECT id FROM completions WHERE adapter = ? AND created >= ?)",
                (f"answered by {adapter}, which was rolled back", adapter, since),
            ).rowcount

    def take_back(self, run_id: str) -> int:
        """Let a run hold again what it has learned: its adapter is given up. Says how many that are.

        What people have superseded or rejected since stays where it is.
        """
        with self._db.transaction("examples") as tx:
            return tx.execute(
                "UPDATE examples AS e SET state = 'training'"
                f" WHERE state = 'used' AND superseded_by IS NULL AND run_id = ? AND {NOT_REJECTED}",
                (run_id,),
            ).rowcount

    def requeue(self, run_ids: Iterable[str]) -> int:
        """Put what these runs have learned back into the queue: their adapters are given up.

        What people have superseded or rejected since stays where it is. Says how many are pending again.
        """
        with self._db.transaction("examples") as tx:
            return tx.execute(
                f"UPDATE examples AS e SET state = {_BACK}, run_id = NULL, left_out = NULL"
                " WHERE state = 'used' AND superseded_by IS NULL"
                f" AND run_id IN (SELECT value FROM json_each(?)) AND {NOT_REJECTED}",
                (json.dumps([*run_ids]),),
            ).rowcount

    def park(self, run_id: str) -> int:
        """Take what a run holds out of the queue until a person looks at it; says how many."""
        with self._db.transaction("examples") as tx:
            self._end_superseded(tx, run_id)
            return tx.execute(
                "UPDATE examples SET state = 'parked', left_out = NULL"
                " WHERE state = 'training' AND run_id = ?",
                (run_id,),
            ).rowcount

    def park_some(self, run_id: str, ids: Iterable[str], note: str) -> int:
        """Park some of what a run holds, and leave the rest with it; says how many."""
        with self._db.transaction("examples") as tx:
            return tx.execute(
                "UPDATE examples SET state = 'parked', left_out = NULL, note = ?"
                " WHERE state = 'training' AND run_id = ? AND id IN (SELECT value FROM json_each(?))",
                (note, run_id, json.dumps([*ids])),
            ).rowcount

    def set_disputes_aside(self, run_id: str, note: str) -> int:
        """Leave to a person what contradicts an earlier word of somebody else; says how many that are.

        Nobody is told so at the time: from the answer a device would learn what another one has taught.
        """
        with self._db.transaction("examples") as tx:
            return tx.execute(
                "UPDATE examples AS e SET state = 'review', run_id = NULL, left_out = NULL, note = ?"
                f" WHERE state = 'training' AND run_id = ? AND {_TAUGHT}"
                f" AND coalesce(note, '') != '{REVIEWED}' AND giver IS NOT NULL"
                f" AND giver NOT IN {_TEACHERS} AND superseded_by IS NULL AND EXISTS"
                " (SELECT 1 FROM examples o WHERE o.query_key = e.query_key AND o.seq < e.seq"
                "  AND o.context_key = e.context_key AND o.kind IN ('correction', 'critique')"
                "  AND o.target_key != e.target_key AND o.giver IS NOT e.giver AND o.superseded_by IS NULL"
                "  AND o.state IN ('pending', 'training', 'used'))",
                (note, run_id),
            ).rowcount

    @staticmethod
    def _end_superseded(tx: sqlite3.Connection, run_id: str) -> None:
        tx.execute(
            "UPDATE examples SET state = 'superseded'"
            " WHERE state = 'training' AND run_id = ? AND superseded_by IS NOT NULL",
            (run_id,),
        )

    def count_replayable(self, runs: Iterable[str]) -> tuple[int, int]:
        """How many examples of these runs `replay` may give, and how many of them people taught."""
        (row,) = self._db.all(
            f"SELECT count(*), total({_TAUGHT}) FROM examples e WHERE {_REPLAYABLE}", (json.dumps([*runs]),)
        )
        return int(row[0]), int(row[1])

    def replay(self, n: int, seed: int, runs: Iterable[str]) -> ExampleList:
        """Up to `n` examples that these runs learned, oldest first; the same for the same seed and store.

        Three quarters of them are what people taught, as far as there is so much: the model's own
        answers are many, and stand for nothing that would be lost.

        Not among them is what its run left out, and what people have superseded or rejected since.
        """
        rows = self._db.all(
            f"SELECT seq, {_TAUGHT} FROM examples e WHERE {_REPLAYABLE} ORDER BY seq",
            (json.dumps([*runs]),),
        )
        taught, own = ([seq for seq, kind in rows if bool(kind) is wanted] for wanted in (True, False))
        n = max(n, 0)
        most = max(n - n // 4, n - len(own))
        draw = random.Random(seed)
        chosen = draw.sample(taught, min(most, len(taught)))
        chosen += draw.sample(own, min(n - len(chosen), len(own)))
        return self._select(
            "WHERE seq IN (SELECT value FROM json_each(?)) ORDER BY seq", (json.dumps(chosen),)
        )

    # -- what feedback does to earlier examples -----------------------------------------------

    def supersede(
        self, query: str, keep_id: str, *, spare_corrections: bool = False, by: str | None = None
    ) -> int:
        """Make earlier examples of the same query obsolete, except `keep_id`.

        Pending, parked and review ones become superseded. Those a run holds or has used are marked,
        so that they neither return to the queue nor get replayed. What a person taught in another
        conversation that happens to hold the same words ("Why?") is left alone.

        Args:
            query: compared after normalisation.
            keep_id: the feedback that supersedes.
            spare_corrections: leave earlier corrections alone unless they teach the very answer
                that `keep_id` rejects.
            by: the device whose own examples alone are meant; None for everybody's.

        Returns:
            How many left the queue or the review list.
        """
        return self._supersede(
            keep_id,
            by,
            "e.query_key = ? AND (e.kind = 'automatic' OR e.context_key = k.context_key)"
            " AND NOT (? AND e.kind = 'correction' AND e.target_key != k.response_key)",
            (text_key(query), spare_corrections),
        )

    def supersede_exchange(self, keep_id: str, by: str | None = None) -> int:
        """Make obsolete what the praise `keep_id` repeats or contradicts.

        That is: earlier praise of the same answer, the automatic example of the very exchange (one
        of several equal ones, when they cannot be told apart), and feedback that rejected the
        answer which is now praised. `by` is the device whose own examples alone are meant.

        Returns:
            How many left the queue or the review list.
        """
        with self._db.transaction("examples"):
            keep = self.get(keep_id)
            exchange = self._db.value(
                "SELECT seq FROM examples WHERE kind = 'automatic' AND query_key = ? AND context_key = ?"
                " AND response_key = ? AND state IN ('pending', 'training') AND superseded_by IS NULL"
                " AND (? IS NULL OR giver = ?) ORDER BY completion_id IS ? DESC, seq DESC LIMIT 1",
                (
                    text_key(keep.query),
                    context_key(keep.messages),
                    text_key(keep.response),
                    by,
                    by,
                    keep.completion_id,
                ),
            )
            return self._supersede(
                keep_id,
                by,
                "e.query_key = k.query_key AND e.context_key = k.context_key"
                " AND e.response_key = k.response_key AND (e.kind = 'praise' OR e.seq IS ?"
                "  OR e.kind IN ('correction', 'critique') AND e.target_key IS NOT k.response_key)",
                (exchange,),
            )

    def _supersede(
        self, keep_id: str, by: str | None, condition: str, parameters: tuple[Any, ...] = ()
    ) -> int:
        # `e` is an earlier example, `k` the feedback that is kept.
        with self._db.transaction("examples") as tx:
            self.get(keep_id)
            rows = tx.execute(
                "SELECT e.seq, e.state IN ('pending', 'parked', 'review') AS waiting"
                " FROM examples e JOIN examples k ON k.id = ?"
                " WHERE e.id != k.id AND e.superseded_by IS NULL AND (? IS NULL OR e.giver = ?)"
                f" AND ({condition})",
                (keep_id, by, by, *parameters),
            ).fetchall()
            tx.execute(
                "UPDATE examples SET superseded_by = ?, state ="
                " CASE WHEN state IN ('pending', 'parked', 'review') THEN 'superseded' ELSE state END"
                " WHERE seq IN (SELECT value FROM json_each(?))",
                (keep_id, json.dumps([row["seq"] for row in rows])),
            )
        return sum(row["waiting"] for row in rows)

    def reject_answer(self, query: str, response: str, example_id: str | None, by: str | None = None) -> None:
        """Remember that `response` is not an answer to `query`, so that it isn't collected again.

        What a device alone says (`by`) holds for what that device asks.
        """
        with self._db.transaction("rejected") as tx:
            tx.execute(
                "INSERT OR REPLACE INTO rejected (query_key, answer_key, answer, example_id, at, device)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (text_key(query), text_key(response), normalise(response), example_id, time.time(), by or ""),
            )

    def accept_answer(self, query: str, response: str, by: str | None = None) -> None:
        """Forget a rejection: a person has since said that the answer is right.

        A device (`by`) takes back its own no, and nobody else's.
        """
        with self._db.transaction("rejected") as tx:
            tx.execute(
                "DELETE FROM rejected WHERE query_key = ? AND answer_key = ? AND (? IS NULL OR device = ?)",
                (text_key(query), text_key(response), by, by),
            )

    def is_rejected(self, query: str, response: str, device: str | None = None) -> bool:
        """Whether it was said, for all or for that device, that `response` is not an answer to `query`."""
        row = self._db.one(
            "SELECT 1 FROM rejected WHERE query_key = ? AND answer_key = ? AND device IN ('', ?)",
            (text_key(query), text_key(response), device or ""),
        )
        return row is not None

    def rejected_answers(self, query: str) -> set[str]:
        """The answers people have rejected for this query, normalised; without those since forgotten."""
        rows = self._db.all(
            "SELECT answer FROM rejected WHERE query_key = ? AND answer != ''", (text_key(query),)
        )
        return {row[0] for row in rows}

    def correction_of(self, query: str, messages: Messages, by: str | None = None) -> Example | None:
        """The newest correction of this query in this conversation that waits to be learned.

        Args:
            query: compared after normalisation.
            messages: the conversation.
            by: the device that gave it; None for anybody.
        """
        return self._correction(query, messages, "(?1 IS NULL OR giver = ?1)", by)

    def correction_for(self, query: str, messages: Messages, device: str | None) -> Example | None:
        """The same, of those that hold for what a device is told; None for who needs no key."""
        condition = f"(giver IS NULL OR giver = ?1 OR giver IN {_TEACHERS})"
        return self._correction(query, messages, condition, device)

    def _correction(
        self, query: str, messages: Messages, condition: str, device: str | None
    ) -> Example | None:
        found = self._select(
            "WHERE query_key = ?2 AND context_key = ?3 AND kind = 'correction' AND superseded_by IS NULL"
            f" AND state IN ('pending', 'training') AND {condition} ORDER BY seq DESC LIMIT 1",
            (device, text_key(query), context_key(messages)),
        )
        return found[0] if found else None

    def feedback_on(
        self, completion_id: str, query: str, response: str, device: str | None = None
    ) -> Example | None:
        """Feedback on that completion, or on the same exchange without naming a completion.

        Only that of the device it was answered to, and the owner's: another device has no say in it.
        """
        found = self._select(
            "WHERE kind != 'automatic' AND (giver IS NULL OR giver = ?) AND (completion_id = ?"
            " OR (completion_id IS NULL AND query_key = ?"
            " AND response_key = ? AND state IN ('pending', 'training', 'review')))"
            " ORDER BY seq DESC LIMIT 1",
            (device, completion_id, text_key(query), text_key(response)),
        )
        return found[0] if found else None

    # -- the allowance of a device ------------------------------------------------------------

    def given(self, device: str, since: float) -> tuple[int, int, int]:
        """What feedback a device has given: (how many since then, their bytes, bytes of all that waits)."""
        (row,) = self._db.all(
            "SELECT count(*) FILTER (WHERE created >= ?2), total(size) FILTER (WHERE created >= ?2),"
            " total(size) FILTER (WHERE state IN ('pending', 'review', 'training', 'parked'))"
            " FROM examples WHERE giver = ?1 AND kind != 'automatic'",
            (device, since),
        )
        return int(row[0]), int(row[1]), int(row[2])

    def update(self, example_id: str, *, expect: State | None = None, **fields: Any) -> Example:
        """Change fields of an example: state, target, weight, note and the like.

        Args:
            example_id: which one.
            expect: change it only while it is in this state.
            **fields: new values by name.

        Raises:
            NotFound: there is no such example.
            Conflict: it is not in the state expected.
        """
        with self._db.transaction("examples") as tx:
            now = self.get(example_id)
            if expect is not None and now.state != expect:
                raise Conflict(f"Example {example_id} is {now.state}, not {expect}, by now.")
            for name in ("target", "feedback", "correction", "note"):
                if fields.get(name) is not None:
                    valid_text(fields[name], name)
            if "weight" in fields:
                finite(fields["weight"], "weight")
            update_row(tx, "examples", ("id", example_id), fields, _CHANGEABLE)
            if "target" in fields:
                target = fields["target"]
                tx.execute(
                    "UPDATE examples SET target_key = ? WHERE id = ?",
                    (None if target is None else text_key(target), example_id),
                )
            if _MIRRORED & fields.keys():
                tx.execute("UPDATE examples SET revision = revision + 1 WHERE id = ?", (example_id,))
            return self.get(example_id)

    # -- the queue's mirror -------------------------------------------------------------------

    def queue_index(self) -> QueueIndex:
        """(sequence number, revision) of every queued example, in order: cheap to compare."""
        rows = self._db.all(
            "SELECT seq, revision FROM examples WHERE state IN ('pending', 'training') ORDER BY seq"
        )
        return [(row[0], row[1]) for row in rows]

    def queue_after(self, seq: int) -> tuple[QueueIndex, ExampleList]:
        """Queued examples with a sequence number above `seq`, in order, and their part of the index."""
        rows = self._db.all(
            f"SELECT seq, revision, {COLUMNS} FROM examples"
            " WHERE state IN ('pending', 'training') AND seq > ? ORDER BY seq",
            (seq,),
        )
        return [(row[0], row[1]) for row in rows], [example_from(row) for row in rows]

    def _select(self, rest: str, parameters: tuple[Any, ...]) -> ExampleList:
        return [
            example_from(row) for row in self._db.all(f"SELECT {COLUMNS} FROM examples {rest}", parameters)
        ]


def size_of(new: NewExample) -> int:
    """Bytes that an example takes, about."""
    texts = (new.query, new.response, new.target, new.feedback, new.correction)
    said = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts if text)
    return ROW_BYTES + said + len(to_json(new.messages, "messages").encode())
