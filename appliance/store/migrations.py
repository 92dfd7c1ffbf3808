"""The schema's history: numbered steps, forward only. `PRAGMA user_version` is the last one applied.

A step that has been released is never edited; a change is a new step at the end. Each step and its
number are committed together, so that a kill in the middle leaves the step before it.
"""

from __future__ import annotations

import sqlite3

from appliance.errors import Unavailable
from appliance.failpoints import failpoint
from appliance.store.normalise import searchable

# Part of step 5.
_SEARCHED = ("query", "response", "target", "feedback", "correction", "note")
_NEW_TEXT = f"searchable({', '.join(f'new.{name}' for name in _SEARCHED)})"

STEPS: tuple[tuple[str, ...], ...] = (
    # 1: everything the first release needs.
    (
        """
        CREATE TABLE runs (
            seq      INTEGER PRIMARY KEY AUTOINCREMENT,
            id       TEXT NOT NULL UNIQUE,
            created  REAL NOT NULL,
            trigger  TEXT NOT NULL CHECK (trigger IN ('threshold', 'timeout', 'person', 'retry')),
            state    TEXT NOT NULL CHECK (state IN ('queued', 'training', 'gating', 'promoted', 'rejected',
                                                    'failed', 'cancelled', 'parked')),
            started  REAL,
            ended    REAL,
            examples INTEGER NOT NULL,
            adapter  TEXT,
            parent   TEXT,
            reason   TEXT,
            attempt  INTEGER NOT NULL,
            report   TEXT,
            metrics  TEXT,
            pid      INTEGER
        ) STRICT
        """,
        "CREATE INDEX runs_state ON runs (state)",
        # The *_key columns hold hashes of normalised texts (store/normalise.py). `revision` counts
        # changes of what the queue's mirror shows. `superseded_by` may be set while a run holds the
        # example: when the run gives it back it becomes superseded instead of pending.
        """
        CREATE TABLE examples (
            seq           INTEGER PRIMARY KEY AUTOINCREMENT,
            id            TEXT NOT NULL UNIQUE,
            created       REAL NOT NULL,
            kind          TEXT NOT NULL CHECK (kind IN ('automatic', 'praise', 'correction', 'critique')),
            state         TEXT NOT NULL CHECK (state IN ('pending', 'training', 'used', 'review',
                                                         'superseded', 'excluded', 'parked')),
            query         TEXT NOT NULL,
            response      TEXT NOT NULL,
            target        TEXT,
            weight        REAL NOT NULL CHECK (weight > 0),
            feedback      TEXT,
            messages      TEXT NOT NULL,
            correction    TEXT,
            rating        TEXT CHECK (rating IN ('up', 'down')),
            finish_reason TEXT NOT NULL CHECK (finish_reason IN ('stop', 'length')),
            device        TEXT,
            source        TEXT NOT NULL,
            completion_id TEXT,
            run_id        TEXT REFERENCES runs (id),
            note          TEXT,
            superseded_by TEXT REFERENCES examples (id),
            revision      INTEGER NOT NULL DEFAULT 0,
            query_key     TEXT NOT NULL,
            response_key  TEXT NOT NULL,
            target_key    TEXT,
            context_key   TEXT NOT NULL,
            CHECK (target IS NOT NULL OR state NOT IN ('pending', 'training', 'used'))
        ) STRICT
        """,
        "CREATE INDEX examples_state ON examples (state, seq, revision)",
        "CREATE INDEX examples_query ON examples (query_key)",
        "CREATE INDEX examples_completion ON examples (completion_id) WHERE completion_id IS NOT NULL",
        "CREATE INDEX examples_run ON examples (run_id) WHERE run_id IS NOT NULL",
        """
        CREATE TABLE rejected (
            query_key  TEXT NOT NULL,
            answer_key TEXT NOT NULL,
            answer     TEXT NOT NULL,
            example_id TEXT REFERENCES examples (id),
            at         REAL NOT NULL,
            PRIMARY KEY (query_key, answer_key)
        ) STRICT, WITHOUT ROWID
        """,
        """
        CREATE TABLE adapters (
            name      TEXT PRIMARY KEY,
            created   REAL NOT NULL,
            sha256    TEXT NOT NULL,
            size      INTEGER NOT NULL,
            base_hash TEXT NOT NULL,
            rank      INTEGER NOT NULL,
            run_id    TEXT,
            parent    TEXT,
            state     TEXT NOT NULL CHECK (state IN ('candidate', 'accepted', 'rejected', 'missing')),
            report    TEXT
        ) STRICT
        """,
        """
        CREATE TABLE switches (
            seq    INTEGER PRIMARY KEY AUTOINCREMENT,
            at     REAL NOT NULL,
            from_  TEXT,
            to_    TEXT,
            reason TEXT NOT NULL,
            actor  TEXT NOT NULL
        ) STRICT
        """,
        """
        CREATE TABLE devices (
            id        TEXT PRIMARY KEY,
            name      TEXT NOT NULL,
            sha256    TEXT NOT NULL UNIQUE,
            created   REAL NOT NULL,
            last_seen REAL,
            collect   INTEGER NOT NULL DEFAULT 1 CHECK (collect IN (0, 1)),
            revoked   INTEGER NOT NULL DEFAULT 0 CHECK (revoked IN (0, 1))
        ) STRICT
        """,
        "CREATE UNIQUE INDEX devices_name ON devices (name) WHERE revoked = 0",
        """
        CREATE TABLE completions (
            seq               INTEGER PRIMARY KEY AUTOINCREMENT,
            id                TEXT NOT NULL UNIQUE,
            created           REAL NOT NULL,
            device            TEXT,
            model             TEXT NOT NULL,
            adapter           TEXT,
            query             TEXT NOT NULL,
            response          TEXT NOT NULL,
            messages          TEXT NOT NULL,
            finish_reason     TEXT NOT NULL,
            prompt_tokens     INTEGER NOT NULL,
            completion_tokens INTEGER NOT NULL,
            query_key         TEXT NOT NULL,
            response_key      TEXT NOT NULL
        ) STRICT
        """,
        "CREATE INDEX completions_exchange ON completions (query_key, response_key)",
        """
        CREATE TABLE audit (
            seq    INTEGER PRIMARY KEY AUTOINCREMENT,
            at     REAL NOT NULL,
            actor  TEXT NOT NULL,
            action TEXT NOT NULL,
            detail TEXT NOT NULL
        ) STRICT
        """,
        "CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID",
    ),
    # 2: what was masked in an example (JSON, counts by kind), and why its run did not train on it.
    (
        "ALTER TABLE examples ADD COLUMN masked TEXT",
        "ALTER TABLE examples ADD COLUMN left_out TEXT",
    ),
    # 3: forgetting. `forgotten` keeps of an example only its id, whose it was, and the runs that learned
    # from it (JSON); `barred` names adapter files that may never serve again, whatever they are called.
    # The indexes are what foreign keys look up for every example that is deleted.
    (
        """
        CREATE TABLE forgotten (
            example_id TEXT PRIMARY KEY,
            device     TEXT,
            at         REAL NOT NULL,
            runs       TEXT NOT NULL
        ) STRICT, WITHOUT ROWID
        """,
        """
        CREATE TABLE barred (
            sha256  TEXT PRIMARY KEY,
            adapter TEXT NOT NULL,
            at      REAL NOT NULL
        ) STRICT, WITHOUT ROWID
        """,
        "CREATE INDEX examples_superseded ON examples (superseded_by) WHERE superseded_by IS NOT NULL",
        "CREATE INDEX rejected_example ON rejected (example_id) WHERE example_id IS NOT NULL",
    ),
    # 4: probation. `withdrawn` names adapter files that did not stand the test of service, and why; the
    # index is for counting what an adapter has answered.
    (
        """
        CREATE TABLE withdrawn (
            sha256  TEXT PRIMARY KEY,
            adapter TEXT NOT NULL,
            reason  TEXT NOT NULL,
            at      REAL NOT NULL
        ) STRICT, WITHOUT ROWID
        """,
        "CREATE INDEX completions_adapter ON completions (adapter, created)",
    ),
    # 5: browsing. Each index begins with the state and one order, and holds all that is filtered by, so
    # that a page neither sorts nor looks at rows it does not show. `example_texts` is what a search looks
    # at: a plain narrow table, because what is deleted from it is really gone. An index of SQLite's FTS5
    # keeps the words of deleted rows until it merges its segments, takes four times the room of the text,
    # and finds parts of words only by writing every three letters. Triggers keep the table true whoever
    # writes; `searchable` is ours, because SQLite's lower() knows no letters but ASCII's.
    (
        """
        CREATE INDEX examples_by_date
        ON examples (state, created, seq, kind, device, weight, masked)
        """,
        """
        CREATE INDEX examples_by_weight
        ON examples (state, weight, created, seq, kind, device, masked)
        """,
        "CREATE TABLE example_texts (seq INTEGER PRIMARY KEY, folded TEXT NOT NULL) STRICT",
        f"INSERT INTO example_texts SELECT seq, searchable({', '.join(_SEARCHED)}) FROM examples",
        f"""
        CREATE TRIGGER examples_written AFTER INSERT ON examples BEGIN
            INSERT INTO example_texts VALUES (new.seq, {_NEW_TEXT});
        END
        """,
        f"""
        CREATE TRIGGER examples_rewritten AFTER UPDATE OF {", ".join(_SEARCHED)} ON examples BEGIN
            UPDATE example_texts SET folded = {_NEW_TEXT} WHERE seq = new.seq;
        END
        """,
        """
        CREATE TRIGGER examples_deleted AFTER DELETE ON examples BEGIN
            DELETE FROM example_texts WHERE seq = old.seq;
        END
        """,
    ),
    # 6: what was changed in config.toml through the console. `differences` is JSON, a list of key, old, new;
    # `undoes` the change that this one took back.
    (
        """
        CREATE TABLE changes (
            seq         INTEGER PRIMARY KEY AUTOINCREMENT,
            at          REAL NOT NULL,
            actor       TEXT NOT NULL,
            undoes      INTEGER REFERENCES changes (seq),
            differences TEXT NOT NULL
        ) STRICT
        """,
    ),
    # 7: what a device may do, and what was asked. `models` is JSON, a list of those it may name, and
    # `rate` how many requests a minute it has; NULL is no limit. `usage` counts by hour (Unix time of its
    # beginning); its device is '' for what came without a key.
    (
        "ALTER TABLE devices ADD COLUMN models TEXT",
        "ALTER TABLE devices ADD COLUMN rate INTEGER CHECK (rate > 0)",
        """
        CREATE TABLE usage (
            at                INTEGER NOT NULL,
            device            TEXT NOT NULL,
            requests          INTEGER NOT NULL,
            prompt_tokens     INTEGER NOT NULL,
            completion_tokens INTEGER NOT NULL,
            seconds           REAL NOT NULL,
            refused           INTEGER NOT NULL,
            PRIMARY KEY (at, device)
        ) STRICT, WITHOUT ROWID
        """,
    ),
    # 8: answers that belong together, and how long one took. The index finds the end of each conversation.
    (
        "ALTER TABLE completions ADD COLUMN conversation TEXT",
        "ALTER TABLE completions ADD COLUMN seconds REAL",
        """
        CREATE INDEX completions_conversation ON completions (conversation, seq)
        WHERE conversation IS NOT NULL
        """,
    ),
    # 9: the pin, and deleting adapters: what a run made may be accepted and wait, and an adapter may be gone
    # by the owner's wish. The CHECKs are changed in the schema's own text, as SQLite's manual describes it
    # (`runs` cannot be made anew while examples refer to it). The index, by which an upload is recognised,
    # also tells other connections that the schema is another.
    (
        "PRAGMA writable_schema = ON",
        """
        UPDATE sqlite_schema SET sql = replace(sql, '''promoted'', ', '''promoted'', ''accepted'', ')
        WHERE type = 'table' AND name = 'runs'
        """,
        """
        UPDATE sqlite_schema SET sql = replace(sql, '''missing''', '''missing'', ''deleted''')
        WHERE type = 'table' AND name = 'adapters'
        """,
        "CREATE INDEX adapters_sha256 ON adapters (sha256)",
        "PRAGMA writable_schema = RESET",
    ),
    # 10: whose word something is. `giver` is the device that asked, or gave the feedback; NULL is the owner
    # and whoever needs no key. Until now the owner's word on what a device was told could not be told from
    # the device's own, which is by far the more frequent through the API. `size` is in bytes, for the
    # allowance of devices. `teach` lets a device's word count for all. A rejection is for one device, or
    # for all (''), as every one was until now. And no draft waits to be learned that nobody has seen.
    (
        "ALTER TABLE devices ADD COLUMN teach INTEGER NOT NULL DEFAULT 0 CHECK (teach IN (0, 1))",
        "ALTER TABLE examples ADD COLUMN giver TEXT",
        "ALTER TABLE examples ADD COLUMN size INTEGER NOT NULL DEFAULT 0",
        "UPDATE examples SET giver = device WHERE kind = 'automatic' OR source = 'api'",
        """
        UPDATE examples SET size = length(CAST(query || response || coalesce(target, '')
            || coalesce(feedback, '') || messages AS BLOB))
        WHERE giver IS NOT NULL AND kind != 'automatic'
        """,
        """
        CREATE INDEX examples_given ON examples (giver, created, state, size)
        WHERE giver IS NOT NULL AND kind != 'automatic'
        """,
        "CREATE INDEX examples_by_giver ON examples (giver, state, created) WHERE giver IS NOT NULL",
        """
        CREATE TABLE rejected_by (
            query_key  TEXT NOT NULL,
            answer_key TEXT NOT NULL,
            device     TEXT NOT NULL DEFAULT '',
            answer     TEXT NOT NULL,
            example_id TEXT REFERENCES examples (id),
            at         REAL NOT NULL,
            PRIMARY KEY (query_key, answer_key, device)
        ) STRICT, WITHOUT ROWID
        """,
        "INSERT INTO rejected_by (query_key, answer_key, answer, example_id, at)"
        " SELECT query_key, answer_key, answer, example_id, at FROM rejected",
        "DROP TABLE rejected",
        "ALTER TABLE rejected_by RENAME TO rejected",
        "CREATE INDEX rejected_example ON rejected (example_id) WHERE example_id IS NOT NULL",
        """
        UPDATE examples SET state = 'review', run_id = NULL, left_out = NULL
        WHERE state IN ('pending', 'training', 'parked') AND note LIKE 'draft:%'
        """,
    ),
)


def version(connection: sqlite3.Connection) -> int:
    """The last step applied to this database; 0 for an empty one."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def migrate(connection: sqlite3.Connection, steps: tuple[tuple[str, ...], ...] = STEPS) -> None:
    """Bring the database to the last step. `connection` must be in autocommit mode.

    Raises:
        Unavailable: the database was written by a newer release.
    """
    # Steps and triggers call it. Whoever changes what it gives adds a step that fills the table anew.
    connection.create_function("searchable", -1, searchable, deterministic=True)
    while True:
        # The lock is taken before looking, so that two processes opening a fresh home don't both
        # apply a step.
        connection.execute("BEGIN IMMEDIATE")
        try:
            done = version(connection)
            if done > len(steps):
                raise Unavailable(
                    f"The store was written by a newer release (schema {done}, this one knows {len(steps)}): "
                    "install that release or restore an older home."
                )
            if done == len(steps):
                return
            failpoint("migrate.begun")
            for statement in steps[done]:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {done + 1}")
            failpoint("migrate.applied")
            connection.execute("COMMIT")
            failpoint("migrate.committed")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
