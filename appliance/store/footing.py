"""Whether the files that a database has open are still those at their paths, and the way back if not.

What deletes or replaces a file leaves it to those who have it open. SQLite goes on writing into a log that
has no name any more, and all it has acknowledged is gone with the process. So whoever writes compares first;
and the daemon, as long as it has everything open, writes all of it into a new file and puts that in place.
"""

from __future__ import annotations

import os
import sqlite3
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from appliance.errors import StorageDamaged, StorageFailing
from appliance.failpoints import failpoint
from appliance.files import fsync_dir, publish_file

LOG, INDEX = "-wal", "-shm"
ASIDE = ".replaced_"

Identity = tuple[int, int]


@dataclass(frozen=True)
class Rescued:
    """What was made good.

    Attributes:
        at: when, in Unix time.
        files: the names of those that were gone, or others.
        aside: the name of what lay there instead and is kept; None when there was nothing worth that.
    """

    at: float
    files: tuple[str, ...]
    aside: str | None


class Footing:
    """The files as they were when they were opened: the database, its log, the log's index."""

    def __init__(self, path: Path) -> None:
        """Note them; they have just been opened."""
        self._path = path
        self._held = {each: identity(each) for each in (path, *beside(path))}

    def lost(self) -> tuple[str, ...]:
        """The names of those that are not there any more, or are others. Takes microseconds."""
        return tuple(path.name for path, held in self._held.items() if identity(path) != held)

    def put_saved(self) -> str | None:
        """Put what `save` has written in place; see `Rescued.aside`.

        The path always names a whole database, ours or theirs, and the saved one is found by the next start.
        """
        path, log = self._path, beside(self._path)[0]
        if not _saved(path).exists():
            return None
        there = identity(path)
        aside = None
        written = identity(log) != self._held[log] and _size(log)
        if there is not None and (there != self._held[path] or written):
            # Somebody's own, or somebody has written after ours.
            aside = _free_name(path)
            os.link(path, path.with_name(aside))
            if identity(log) not in (None, self._held[log]):
                log.rename(path.with_name(f"{aside}{LOG}"))
        finish(path)
        return aside


def beside(path: Path) -> tuple[Path, Path]:
    """Log and index of a database."""
    return path.with_name(path.name + LOG), path.with_name(path.name + INDEX)


def identity(path: Path) -> Identity | None:
    """Which file that is; None when there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def save(connection: sqlite3.Connection, path: Path) -> None:
    """Write all that a connection to the database sees into a file beside it: whole, or not at all.

    Raises:
        StorageFailing: the directory is gone.
        StorageFull: there is no room.
        StorageDamaged: what it sees is not sound.
        sqlite3.Error: it cannot be read or written.
    """
    if not path.parent.is_dir():
        raise StorageFailing(f"{path.parent} is not there any more: nothing is written until it is back.")
    draft = path.with_name(f".{path.name}.saving")
    draft.unlink(missing_ok=True)
    os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
    try:
        connection.execute("VACUUM INTO ?", (str(draft),))
        problems = _problems(draft)
        if problems != "ok":
            raise StorageDamaged(
                f"What {path.name} held when its files were taken away is damaged: {problems}"
            )
        publish_file(draft, _saved(path))
    finally:
        draft.unlink(missing_ok=True)


def finish(path: Path) -> bool:
    """Put what was saved in place, if something is; says whether. Nobody may have the database open."""
    saved = _saved(path)
    if not saved.exists():
        return False
    for other in beside(path):  # of another database: applied to this one, it would ruin it
        other.unlink(missing_ok=True)
    failpoint("rescue.cleared")
    saved.replace(path)
    fsync_dir(path.parent)
    return True


def _saved(path: Path) -> Path:
    return path.with_name(f".{path.name}.saved")


def _problems(path: Path) -> str:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        return "; ".join(str(row[0]) for row in connection.execute("PRAGMA quick_check(5)"))
    finally:
        connection.close()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _free_name(path: Path) -> str:
    stem = f"{path.name}{ASIDE}{datetime.fromtimestamp(time.time(), UTC):%Y%m%dT%H%M%SZ}"
    name, number = stem, 1
    while path.with_name(name).exists():
        number += 1
        name = f"{stem}-{number}"
    return name
