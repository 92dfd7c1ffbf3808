"""A damaged database: found at the start, moved aside, and the last good state put in its place.

What was read of the damaged file goes over the newest backup that is whole; see `store/salvage.py`. If
there is no backup, over nothing: a box that serves and has forgotten something is worth more than one that
does not start. The damaged file stays in the home as `damaged_TIME`, and nothing is ever written to it.
"""

from __future__ import annotations

import json
import logging
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import TypeAdapter

from appliance.backup import archive
from appliance.backup.restore import pending, put_in_place, restored_at, sync_tree
from appliance.errors import InvalidRequest, ShammahError, StorageFull, Unavailable
from appliance.files import remove_durably, storage_errors, write_atomic
from appliance.home import Home
from appliance.lock import held_alone
from appliance.store import Store
from appliance.store.db import Database, find_damage, look_into
from appliance.store.footing import finish
from appliance.store.keep import NAME as MIGRATION_NAME
from appliance.store.keep import copies
from appliance.store.salvage import Salvaged, salvage

logger = logging.getLogger(__name__)

ACTOR = "appliance"
NEWS = "mended.json"
SUSPECT = ".suspect"
"""Lies in the home when a running daemon has met damage."""
QUICK_BYTES = 64_000_000
"""A database up to this size is read through at every start: that takes a tenth of a second."""
_WORK = ".mending"
_LATEST = 1e11
"""Unix time; later ones have no date."""
_FILES = ("store.db-wal", "store.db-shm", "store.db")
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


@dataclass(frozen=True)
class Mended:
    """What the owner is told.

    Attributes:
        at: when, in Unix time.
        problem: what was wrong.
        kept: the directory in the home with the damaged file.
        backup: the backup that what could not be read is from; None when there was none that is whole.
        made: when that was made.
        broken: tables of which not all could be read.
        queued: examples that only the queue's mirror had.
        doubtful: examples that are excluded, because nobody knows whether they were learned.
    """

    at: float
    problem: str
    kept: str
    backup: str | None
    made: float | None
    broken: tuple[str, ...]
    queued: int
    doubtful: int

    @property
    def told(self) -> str:
        """The outcome in a few sentences."""
        if not self.broken:
            text = "All that was in it could be read, and is in a new one: nothing is lost."
        else:
            names = ", ".join(self.broken)
            if self.made is None:
                text = "What could be read is in a new one. There was no backup that is whole, so "
                text += f"the rest is lost, of: {names}."
            else:
                when = f"{datetime.fromtimestamp(self.made, UTC):%Y-%m-%d %H:%M} UTC"
                text = f"What could not be read is as of {when}, from a backup; that concerns: {names}."
                if "devices" in self.broken:
                    text += " Look whether keys that you have revoked since are revoked."
        return f"{text} The damaged file is kept as {self.kept}."


def mend(home: Home) -> Mended | None:
    """Look at the database, and put the last good state in its place if it is damaged. Only at a start.

    It is read through when it is small, or when the daemon did not end in an orderly way; else only opened.

    Returns:
        What was done; None when there was nothing to do, or a daemon runs.

    Raises:
        StorageFull: it is damaged, and the disk has no room to mend it. Nothing was changed.
    """
    if not home.root.is_dir():
        return None
    with held_alone(home) as alone:
        if not alone:
            return None
        problem = _damage(home)
        if problem is None:
            with suppress(OSError):
                (home.root / SUSPECT).unlink(missing_ok=True)
            shutil.rmtree(home.root / _WORK, ignore_errors=True)  # cut off when it was done
            return None
        logger.error("store.db is damaged: %s", problem)
        mended = _mend(home, problem)
        remove_durably(home.root / SUSPECT)
    return mended


def finish_rescue(home: Home) -> bool:
    """Put in place what a daemon had saved when it ended before it could: see `store/footing.py`."""
    if not home.root.is_dir():
        return False
    with held_alone(home) as alone:
        return alone and finish(home.store)


def read_news(home: Home) -> Mended | None:
    """What was mended and the owner has not been told of yet."""
    try:
        news = TypeAdapter(Mended).validate_json((home.root / NEWS).read_bytes())
    except (OSError, ValueError):
        return None
    return news if all(0 < when < _LATEST for when in (news.at, news.made or 1.0)) else None


def dismiss_news(home: Home) -> None:
    """The owner has read it."""
    remove_durably(home.root / NEWS)


def suspect(home: Home) -> None:
    """Have the next start read the database through."""
    with suppress(OSError):
        (home.root / SUSPECT).touch(mode=0o600)


def _damage(home: Home) -> str | None:
    try:
        size = home.store.stat().st_size
    except OSError:
        return None  # there is none yet; or opening it says what is wrong
    if size == 0:
        # The first start may have been cut off; if there was more, something has emptied it.
        lived = any(home.adapters.glob("adapter_*")) or any(home.runs.glob("run_*"))
        return "it is empty" if lived or (home.queue.is_file() and home.queue.stat().st_size) else None
    unclean = home.daemon.exists() or (home.root / SUSPECT).exists()
    try:
        if unclean or size <= QUICK_BYTES:
            return find_damage(home.store)
        look_into(home.store)
    except sqlite3.DatabaseError as error:
        if (getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF in _DAMAGE:
            return str(error)
    return None


def _mend(home: Home, problem: str) -> Mended:
    place = home.root / _WORK
    with storage_errors("what could be read of the damaged store"):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(mode=0o700)
        try:
            damaged = _copy_damaged(home, place)
            fresh = place / "new"
            fresh.mkdir()
            for base in _bases(home, fresh):
                try:
                    found = _build(home, fresh, damaged, problem)
                    break
                except StorageFull:
                    raise
                except (sqlite3.Error, ShammahError) as error:
                    logger.warning("The store cannot be built on %s: %s", base[0] or "nothing", error)
            else:
                raise Unavailable(f"{home.store} is damaged ({problem}), and cannot be mended.")
            now = time.time()
            kept = _free_name(home, now)
            news = Mended(now, problem, kept, *base, tuple(found.broken), found.queued, found.doubtful)
            write_atomic(fresh / NEWS, json.dumps(asdict(news), indent=1) + "\n")
            sync_tree(fresh)
            put_in_place(home, f"{_WORK}/new", kept, (*_FILES, NEWS))
        finally:
            if not pending(home):  # else the next start finishes it
                shutil.rmtree(place, ignore_errors=True)
    return news


def _copy_damaged(home: Home, place: Path) -> Path | None:
    """A copy that may be opened: opening a database may write to it."""
    size = sum((home.root / name).stat().st_size for name in _FILES if (home.root / name).exists())
    if shutil.disk_usage(place).free < 3 * size + archive.SPARE_BYTES:
        raise StorageFull(
            f"{home.store.name} is damaged, and the disk has no room to mend it: free about "
            f"{(3 * size + archive.SPARE_BYTES) // 1_000_000:,} MB and start again."
        )
    for name in ("store.db", "store.db-wal"):
        if (home.root / name).exists():
            shutil.copyfile(home.root / name, place / name)
    copy = place / "store.db"
    return copy if copy.stat().st_size else None


def _bases(home: Home, fresh: Path) -> Iterator[tuple[str | None, float | None]]:
    """Put the database of one backup after the other in place, newest first, and at last none."""
    target = fresh / "store.db"
    candidates = [
        (archive.made_at(found.name), found.path) for found in archive.backups(home) if not found.brought
    ]
    for path in copies(home.backups):
        match = MIGRATION_NAME.fullmatch(path.name)
        assert match is not None
        made = datetime.strptime(match[3], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
        candidates.append((made, path))
    for made, path in sorted(candidates, reverse=True):
        if made < restored_at(home):
            break  # what they know is of another past
        for leftover in fresh.iterdir():
            leftover.unlink()
        try:
            if path.suffix == ".db":
                shutil.copyfile(path, target)
            else:
                archive.extract_store(path, target)
        except (InvalidRequest, FileNotFoundError) as error:
            logger.warning("%s is of no use: %s", path.name, error)
            continue
        yield path.name, made
    for leftover in fresh.iterdir():
        leftover.unlink()
    yield None, None


def _build(home: Home, fresh: Path, damaged: Path | None, problem: str) -> Salvaged:
    store = Store(Database(fresh / "store.db"))  # brings an older schema up to date
    try:
        store.database.check()
        found = salvage(damaged, store.database, home.queue)
        store.audit.add(
            ACTOR, "store.mended", {"problem": problem, "rows": found.rows, "broken": found.broken}
        )
        store.database.check()
        store.database.scrub()
    finally:
        store.close()
    return found


def _free_name(home: Home, when: float) -> str:
    stem = f"damaged_{datetime.fromtimestamp(when, UTC):%Y%m%dT%H%M%SZ}"
    name, number = stem, 1
    while (home.root / name).exists():
        number += 1
        name = f"{stem}-{number}"
    return name
