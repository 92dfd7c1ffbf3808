"""The database: connections, locking, transactions, and what SQLite's errors mean to us.

Two connections, not one per thread. SQLite lets one writer in at a time whatever we do, and our
callers come from `asyncio.to_thread`, whose threads come and go: connections of their own would
pile up, and closing them all would be guesswork. So every write goes through one connection behind
one re-entrant lock, which also makes joining a nested transaction plain. A second, read-only
connection serves reads outside a transaction: thanks to the WAL they see the last commit and never
wait for the disk flush of a commit going on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prometheus_client import Histogram

from appliance.errors import (
    ShammahError,
    StorageDamaged,
    StorageFailing,
    StorageFull,
    Unavailable,
)
from appliance.failpoints import failpoint
from appliance.files import fsync_dir, storage_errors
from appliance.store.footing import Footing, Rescued, save
from appliance.store.migrations import STEPS, migrate, version

logger = logging.getLogger(__name__)

Listener = Callable[[frozenset[str]], None]

BUSY_SECONDS = 5.0
"""How long a write waits for another program that holds the database."""
QUEUE_SECONDS = 30.0
"""How long it waits for other writes of this process: some of them wait for that program, one by one."""
RESCUE_SECONDS = 5.0
"""From one attempt to make good what was done to the files to the next: each writes all there is."""
_PROBE_BYTES = 64 * 1024


class Database:
    """A migrated SQLite file. Thread-safe.

    Attributes:
        damaged: what SQLite said when it found the file damaged; None as long as it has not.
    """

    _footing: Footing | None = None
    _tell: Callable[[Rescued], None] | None = None
    _try_at, _trouble = 0.0, ""
    _saved: tuple[str, ...] = ()

    def __init__(self, path: Path, keep: Callable[[int, int], object] | None = None) -> None:
        """Open `path`, creating it private to this user, and migrate it.

        Args:
            path: the file.
            keep: called before a migration of what is there, with the schema before and after; if it
                raises, nothing is changed.

        Raises:
            StorageFull: there is no room for it, or for what `keep` keeps.
            Unavailable: it is damaged, locked, or from a newer release.
        """
        self.path = path
        self.commits = Histogram(
            "shammah_store_commit_seconds",
            "Time that a transaction takes to reach the disk.",
            buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
            registry=None,
        )
        self.damaged: str | None = None
        self._write_lock = threading.RLock()
        self._read_lock = threading.Lock()
        self._owner: int | None = None
        self._failed = False
        self._touched: set[str] = set()
        self._listeners: list[Listener] = []
        with storage_errors(path.name):
            # The WAL and its index take over the mode of the main file.
            os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        self._open(keep)

    def _open(self, keep: Callable[[int, int], object] | None = None) -> None:
        self._writer = self._connect()
        try:
            with self._explained():
                self._writer.execute("PRAGMA journal_mode = WAL")
                self._writer.execute("PRAGMA foreign_keys = ON")
                # FULL flushes the WAL at every commit: what a call acknowledged survives a power cut.
                self._writer.execute("PRAGMA synchronous = FULL")
                self._writer.execute("PRAGMA journal_size_limit = 16777216")
                # What is deleted is overwritten with zeros, and does not lie about in free pages.
                self._writer.execute("PRAGMA secure_delete = ON")
                if keep is not None and 0 < (found := version(self._writer)) < len(STEPS):
                    keep(found, len(STEPS))
                migrate(self._writer)
            self._reader = self._connect()
            with self._explained():
                self._reader.execute("PRAGMA query_only = ON")
                self._reader.execute("SELECT count(*) FROM settings").fetchone()
        except BaseException:
            self._shut()
            raise
        self._footing = Footing(self.path)
        fsync_dir(self.path.parent)

    def guard(self, tell: Callable[[Rescued], None]) -> None:
        """From now on, make good what others do to the files. For the one process that serves the home.

        Args:
            tell: called with what was made good, in the thread that found it.
        """
        self._tell = tell

    def keep_footing(self) -> None:
        """See whether the files that are open are still those at their paths; make it good if they are not.

        Whoever does not guard them only refuses: of two that did it, one would undo what the other did.

        Raises:
            Unavailable: it cannot be made good now; nothing may be written.
        """
        with self._turn(None):
            self._stand()

    def _stand(self) -> None:
        """The same, by the one whose turn it is, outside of a transaction."""
        if self._footing is None or not (lost := self._saved or self._footing.lost()):
            self._try_at = 0.0
            return
        what = f"{', '.join(lost)} {'was' if len(lost) == 1 else 'were'} removed or replaced while in use"
        if self._tell is None or (not self._saved and time.monotonic() < self._try_at):
            raise StorageFailing(f"{what}: nothing is written until that has been made good. {self._trouble}")
        self._try_at = time.monotonic() + RESCUE_SECONDS
        try:
            with self._explained(), storage_errors(self.path.name), self._read_lock:
                rescued = self._rescue(self._footing, lost)
        except (sqlite3.Error, OSError) as error:
            self._trouble = str(error)
            raise StorageFailing(f"{what}, and cannot be put back: {error}.") from error
        except ShammahError as error:
            self._trouble = error.message
            raise
        logger.error(
            "%s: removed or replaced while in use. All that was stored has been written into a new file.%s",
            ", ".join(rescued.files),
            f" What lay there is kept as {rescued.aside}." if rescued.aside else "",
        )
        self._tell(rescued)

    def _rescue(self, footing: Footing, lost: tuple[str, ...]) -> Rescued:
        if not self._saved:
            save(self._writer, self.path)
            self._saved = lost
        failpoint("rescue.saved")
        aside = footing.put_saved()
        # First: closing the last connection deletes what is called like the log.
        self._shut()
        self._open()
        self._saved = ()
        return Rescued(time.time(), lost, aside)

    def _connect(self) -> sqlite3.Connection:
        with self._explained():
            connection = sqlite3.connect(
                self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
        connection.row_factory = sqlite3.Row
        return connection

    @contextmanager
    def transaction(self, *tables: str, wait: float | None = None) -> Iterator[sqlite3.Connection]:
        """All or nothing: committed and flushed to disk when the block ends, rolled back if it raises.

        Nested use in the same thread joins the outer transaction. When an inner block has failed
        the outer one cannot commit any more, even if the exception was caught in between.

        Args:
            tables: what the block writes, for the listeners of `on_change`.
            wait: how many seconds to wait for others who write; for what is not worth holding up a request.

        Raises:
            StorageFull: the disk is full; nothing of the transaction was kept.
            Unavailable: others have been writing all the time.
        """
        touched: frozenset[str] = frozenset()
        committed = False
        with self._turn(wait):
            outermost = self._owner is None
            if outermost:
                self._stand()
                with self._explained():
                    self._begin(wait)
                self._owner = threading.get_ident()
                self._failed = False
                self._touched.clear()
            elif self._failed:
                raise RuntimeError("a part of this transaction has failed; it can only be rolled back")
            self._touched.update(tables)
            try:
                # What the block does beside (a file, a link) fails like a write of ours.
                with self._explained(), storage_errors(self.path.name):
                    yield self._writer
                    if outermost:
                        if self._failed:
                            raise RuntimeError("a part of this transaction has failed; nothing was kept")
                        with self.commits.time():
                            self._writer.execute("COMMIT")
                        committed = True
                        touched = frozenset(self._touched)
            except BaseException:
                self._failed = True
                raise
            finally:
                if outermost:
                    self._owner = None
                    # SQLite has rolled back by itself after some errors, a full disk among them.
                    if self._writer.in_transaction:
                        with contextlib.suppress(sqlite3.Error):
                            self._writer.execute("ROLLBACK")
            if committed:
                self._stand()  # or it is where nobody finds it again
        if touched:
            for listener in list(self._listeners):
                listener(touched)

    @contextmanager
    def _turn(self, wait: float | None) -> Iterator[None]:
        if not self._write_lock.acquire(timeout=QUEUE_SECONDS if wait is None else wait):
            raise self._in_use()
        try:
            yield
        finally:
            self._write_lock.release()

    def _begin(self, wait: float | None) -> None:
        if wait is None:
            self._writer.execute("BEGIN IMMEDIATE")
            return
        self._writer.execute(f"PRAGMA busy_timeout = {int(wait * 1000)}")
        try:
            self._writer.execute("BEGIN IMMEDIATE")
        finally:
            self._writer.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")

    def _in_use(self) -> Unavailable:
        return Unavailable(f"{self.path} is in use by another program; try again when it is done.")

    def all(self, sql: str, parameters: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """The rows of a query; inside a transaction of this thread it sees that transaction's writes."""
        with self._explained():
            if self._owner == threading.get_ident():
                return self._writer.execute(sql, parameters).fetchall()
            with self._read_lock:
                return self._reader.execute(sql, parameters).fetchall()

    def one(self, sql: str, parameters: Sequence[Any] = ()) -> sqlite3.Row | None:
        """The first row of a query, if any."""
        rows = self.all(sql, parameters)
        return rows[0] if rows else None

    def value(self, sql: str, parameters: Sequence[Any] = ()) -> Any:
        """The first column of the first row; None when there is no row."""
        row = self.one(sql, parameters)
        return None if row is None else row[0]

    def data_version(self) -> int:
        """A number that changes when anyone, in this process or another, has committed."""
        return int(self.value("PRAGMA data_version"))

    def scrub(self) -> None:
        """Leave no trace of deleted rows in the files: rewrite the database and empty the WAL.

        `secure_delete` alone does not do it: the WAL keeps earlier versions of pages, and a page that was
        split before a deletion may still hold a copy of what then moved to another one. Takes as long as
        writing the whole file.

        Raises:
            StorageFull: there is no room for the copy.
            Unavailable: another program reads from the store for longer than we wait.
        """
        with self._write_lock:
            if self._owner is not None:
                raise RuntimeError("the database cannot be rewritten inside a transaction")
            self._stand()
            with self._explained(), self._read_lock:
                self._writer.execute("VACUUM")
                busy = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        if busy:
            raise self._in_use()

    def copy_to(self, path: Path) -> None:
        """Write a copy as of now to a new file, without anything that was deleted. Others go on meanwhile.

        Raises:
            StorageFull: there is no room for it.
        """
        self.keep_footing()  # another connection opens files by name
        with self._explained():
            copy_database(self.path, path)

    def check(self) -> None:
        """Look at every page and index.

        Takes a connection of its own: it may last, and others want to read meanwhile.

        Raises:
            StorageDamaged: something is wrong.
        """
        self.keep_footing()
        with self._explained():
            problem = find_damage(self.path)
        if problem is not None:
            self.damaged = problem
            raise StorageDamaged(f"{self.path.name} is damaged: {problem}")

    def on_change(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with the tables written, after each commit of this process.

        It runs in the committing thread: it must be quick and not raise.

        Returns:
            A function that removes the listener.
        """
        self._listeners.append(listener)

        def remove() -> None:
            with contextlib.suppress(ValueError):
                self._listeners.remove(listener)

        return remove

    def close(self) -> None:
        """Close both connections; later use raises `Unavailable`. Idempotent."""
        with self._write_lock:
            if self._tell is not None:
                with contextlib.suppress(ShammahError, sqlite3.Error, OSError):
                    self._stand()
            self._footing = None
            with self._read_lock:
                self._shut()

    def _shut(self) -> None:
        for connection in (getattr(self, "_reader", None), self._writer):
            if connection is not None:
                connection.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            known = self._meaning(error)
            if known is None:
                raise
            raise known from error

    def _meaning(self, error: sqlite3.Error) -> ShammahError | None:
        code = getattr(error, "sqlite_errorcode", None)
        if code is None:
            if "closed database" in str(error):
                return Unavailable("The store is closed: the appliance is shutting down.")
            return None
        primary = code & 0xFF
        if primary == sqlite3.SQLITE_FULL:
            return StorageFull(
                f"The disk is full: nothing was written to {self.path.name}. Free space and retry."
            )
        if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return self._in_use()
        if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            self.damaged = str(error)
            return StorageDamaged(
                f"{self.path} is damaged ({error}). A restart puts the last good state in place."
            )
        if primary in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
            # Flushes and the WAL's index report a lack of space as a plain input/output error.
            return self._disk_trouble() or StorageFailing(f"{self.path} cannot be used: {error}.")
        return None

    def _disk_trouble(self) -> ShammahError | None:
        # Free-space counters know nothing of quotas; writing something is the sure test.
        try:
            with storage_errors(self.path.name), tempfile.TemporaryFile(dir=self.path.parent) as file:
                file.write(bytes(_PROBE_BYTES))
                file.flush()
                os.fsync(file.fileno())
        except ShammahError as trouble:
            return trouble
        except OSError:
            return None
        return None


def copy_database(source: Path, target: Path) -> None:
    """Write a copy of a database as of now to a new file, without anything that was deleted.

    Others go on meanwhile, and no lock is held that they could wait for. The same content gives the same
    bytes.

    Raises:
        sqlite3.Error: it cannot be read or written.
    """
    connection = sqlite3.connect(source, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        connection.execute("VACUUM INTO ?", (str(target),))
    finally:
        connection.close()
    target.chmod(0o600)


def find_damage(path: Path) -> str | None:
    """Look at every page and index of a database; what is wrong with it, if something is.

    Takes about a second and a half for a gigabyte, or as long as reading that from the disk.

    Raises:
        sqlite3.Error: it cannot be looked at.
    """
    connection = _read_only(path)
    try:
        problems = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(5)")]
    finally:
        connection.close()
    return None if problems == ["ok"] else " ".join("; ".join(problems).split())


def look_into(path: Path) -> None:
    """Read the schema of a database, which takes no time.

    Raises:
        sqlite3.Error: it cannot be read.
    """
    connection = _read_only(path)
    try:
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    finally:
        connection.close()


def _read_only(path: Path) -> sqlite3.Connection:
    # Closing it does not even move the WAL into the file.
    uri = f"{path.absolute().as_uri()}?mode=ro"
    return sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
