"""The store: what the appliance remembers, in one SQLite file. The only room that speaks SQL.

Calls are synchronous and thread-safe; asynchronous callers wrap them in `asyncio.to_thread`. A call
that writes has its result on disk when it returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from appliance.files import storage_errors
from appliance.home import Home
from appliance.store.adapters import Adapters
from appliance.store.audit import Audit
from appliance.store.browse import Browse
from appliance.store.bulk import Bulk
from appliance.store.changes import Changes
from appliance.store.completions import Completions
from appliance.store.db import Database, Listener
from appliance.store.examples import Examples
from appliance.store.forgotten import Forgotten
from appliance.store.keep import keep_copy
from appliance.store.keys import Keys
from appliance.store.owner import Unsaved
from appliance.store.ratings import Ratings
from appliance.store.runs import Runs
from appliance.store.settings import Settings
from appliance.store.transfer import Transfer
from appliance.store.usage import Usage

__all__ = ["Store"]


class Store:
    """All table families over one database."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.examples = Examples(database)
        self.browse = Browse(database)
        self.bulk = Bulk(database)
        self.transfer = Transfer(database)
        self.runs = Runs(database)
        self.adapters = Adapters(database)
        self.keys = Keys(database)
        self.usage = Usage(database)
        self.completions = Completions(database)
        self.ratings = Ratings(database)
        self.forgotten = Forgotten(database)
        self.audit = Audit(database)
        self.settings = Settings(database)
        self.changes = Changes(database)
        self.unsaved = Unsaved()

    @classmethod
    def open(cls, home: Home) -> Store:
        """Open the home's store, creating and migrating it as needed.

        What is there is copied into `backups/` before it is migrated.
        """
        with storage_errors(f"the home {home.root}"):
            home.ensure()
        return cls(Database(home.store, partial(keep_copy, home.backups, home.store)))

    @contextmanager
    def transaction(self, wait: float | None = None) -> Iterator[None]:
        """Make several calls one unit: all of them are kept, or none. Nested use joins the outer one.

        Args:
            wait: how many seconds to wait for others who write; for what is not worth holding up a request.
        """
        with self.database.transaction(wait=wait):
            yield

    def on_change(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with the names of the tables written, after each commit of this process.

        It runs in the committing thread: it must be quick and not raise. Returns the function that
        removes it.
        """
        return self.database.on_change(listener)

    def close(self) -> None:
        """Close the file; later calls raise `Unavailable`. Idempotent."""
        self.database.close()
