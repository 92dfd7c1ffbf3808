"""`training_queue.jsonl`: the queue as a file anyone can read, one JSON object a line.

It is a copy; `store.db` is the truth. Losing it costs nothing, so appended lines are not flushed to
the disk and a line torn by a crash is mended at the next start.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable

from appliance.errors import ShammahError, StorageFull
from appliance.failpoints import failpoint
from appliance.files import storage_errors, write_atomic
from appliance.home import Home
from appliance.store import Store
from appliance.store.example import Example
from appliance.store.examples import QueueIndex

log = logging.getLogger(__name__)

FIELDS = (
    "query", "response", "weight", "feedback", "messages", "correction", "rating", "id", "created", "device",
    "source",
)  # fmt: skip

SETTLE_SECONDS = 0.1
"""A burst of changes is written once."""
POLL_SECONDS = 0.8
"""How often commits of other processes (the command line) are looked for."""
RETRY_SECONDS = 5.0


def queue_line(example: Example) -> str:
    """The example as a line of the file, newline included."""
    return json.dumps({name: getattr(example, name) for name in FIELDS}, ensure_ascii=False) + "\n"


class QueueMirror:
    """Keeps the file equal to the pending examples and those a run holds, within a second."""

    def __init__(self, store: Store, home: Home) -> None:
        self._store = store
        self._path = home.queue
        self._lock = threading.Lock()
        self._written: QueueIndex | None = None  # what the file holds; None: not known
        self._size = 0
        self._changed = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._remove_listener: Callable[[], None] | None = None
        self._failing = False

    def start(self) -> None:
        """Rebuild the file and follow the store. A full disk is logged and retried, not raised."""
        self._remove_listener = self._store.on_change(self._notice)
        self._try_sync()
        self._thread = threading.Thread(target=self._follow, name="queue-mirror", daemon=True)
        self._thread.start()

    def flush(self) -> None:
        """Make the file equal to the queue now.

        Raises:
            StorageFull: the disk is full; the file holds what it held before.
        """
        with self._lock:
            self._sync()

    def stop(self) -> None:
        """Write what is due and end the thread. Call it before the store is closed."""
        if self._remove_listener is not None:
            self._remove_listener()
        self._stopping.set()
        self._changed.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._try_sync()

    def _notice(self, tables: frozenset[str]) -> None:
        if "examples" in tables:
            self._changed.set()

    def _follow(self) -> None:
        seen = -1
        while not self._stopping.is_set():
            ours = self._changed.wait(RETRY_SECONDS if self._failing else POLL_SECONDS)
            if self._stopping.is_set():
                return
            if ours:
                # Also keeps a full disk from turning every new example into an attempt.
                self._stopping.wait(RETRY_SECONDS if self._failing else SETTLE_SECONDS)
                self._changed.clear()
            try:
                # Also where nobody writes what others do to the files is found within a second.
                self._store.database.keep_footing()
                version = self._store.database.data_version()
            except ShammahError:
                version = -1
            if ours or self._failing or version != seen or not self._untouched():
                self._try_sync()
            seen = version

    def _try_sync(self) -> None:
        try:
            self.flush()
        except (ShammahError, OSError) as error:
            if not self._failing:
                log.warning("%s is behind the queue and will be retried: %s", self._path.name, error)
            self._failing = True
        else:
            if self._failing:
                log.info("%s follows the queue again", self._path.name)
            self._failing = False

    def _sync(self) -> None:
        index = self._store.examples.queue_index()
        known, self._written = self._written, None
        if known is None or not self._untouched() or index[: len(known)] != known:
            self._rewrite()
        elif len(index) > len(known):
            self._append(known)
        else:
            self._written = known

    def _untouched(self) -> bool:
        try:
            return self._path.stat().st_size == self._size
        except OSError:
            return False

    def _rewrite(self) -> None:
        data, written = self._lines(-1)
        write_atomic(self._path, data)
        self._written, self._size = written, len(data)

    def _append(self, known: QueueIndex) -> None:
        data, written = self._lines(known[-1][0] if known else -1)
        with storage_errors(self._path.name):
            fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            try:
                if os.write(fd, data) != len(data):
                    raise StorageFull(f"The disk is full: {self._path.name} was not written.")
                failpoint("mirror.appended")
            except (OSError, StorageFull):
                os.ftruncate(fd, self._size)
                raise
            finally:
                os.close(fd)
        self._written, self._size = known + written, self._size + len(data)

    def _lines(self, after: int) -> tuple[bytes, QueueIndex]:
        index, examples = self._store.examples.queue_after(after)
        return "".join(map(queue_line, examples)).encode(), index
