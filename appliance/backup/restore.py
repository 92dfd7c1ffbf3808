"""Putting a backup in the place of what is there, so that a power cut at any line leaves one or the other.

First everything is unpacked beside, verified and brought to this release's schema. Then a note is
written: from there on the restore will happen. `finish_restore` carries the note out when no daemon
runs, moving what was there aside and the new in its place; it may be cut off and begun again. What was
moved aside stays, until the owner deletes it, and can be put back the same way.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from appliance.adapters.file import SUFFIX
from appliance.backup.archive import Manifest, unpack
from appliance.config import decode, parse_config
from appliance.errors import BundleError, Conflict, InvalidRequest, NotFound
from appliance.failpoints import failpoint
from appliance.files import fsync_dir, remove_durably, replace_symlink, storage_errors, write_atomic
from appliance.home import Home
from appliance.lock import held_alone
from appliance.model.bundle import load_bundle
from appliance.model.source import DEFAULT_NAME
from appliance.store import Store
from appliance.store.db import Database

_ITEMS = (
    "store.db-wal",
    "store.db-shm",
    "store.db",
    "config.toml",
    "adapters",
    "runs",
    "training_queue.jsonl",
)
_TLS = "tls"
"""Not of every backup, and what is there is better than nothing: devices trust it."""
_STAGED = ".restore"
_SPOILT = ".restore.json.spoilt"
_NOTE = ".restore.json"
_ASIDE = "before-restore_"
_GOING = ".gone-"
_RESTORED = ".restored"
_ASIDE_NAME = re.compile(rf"{_ASIDE}\d{{8}}T\d{{6}}Z(-\d+)?", re.ASCII)
_MOVED_NAME = re.compile(r"(before-restore|damaged)_\d{8}T\d{6}Z(-\d+)?", re.ASCII)
"""What is moved aside, here or by `mend.py`, is called so."""
logger = logging.getLogger(__name__)
_preparing = threading.Lock()


@dataclass(frozen=True)
class Aside:
    """What was there before a restore: the name of its directory, when, and its size in bytes."""

    name: str
    at: float
    size: int


def stage(home: Home, archive: Path, actor: str) -> Manifest:
    """Unpack and check an archive; from the return on, the next start puts it in place.

    Args:
        home: where it shall go.
        archive: the backup.
        actor: who wants it, for the audit trail that comes with the backup.

    Raises:
        InvalidRequest: the backup is damaged, or its model is not installed here.
        Unavailable: its database is damaged, or from a newer release.
        Conflict: another restore is being prepared.
        StorageFull: there is no room; nothing has changed.
    """
    place = home.root / _STAGED
    with _alone(), storage_errors("what was in the backup"):
        _clear(home)
        place.mkdir(mode=0o700)
        try:
            manifest = unpack(archive, place)
            failpoint("restore.unpacked")
            _check(home, place, manifest, actor)
            sync_tree(place)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        failpoint("restore.checked")
        _note(home, _STAGED, "aside")
        failpoint("restore.noted")
    return manifest


def stage_aside(home: Home, name: str) -> None:
    """Have what was there before a restore put back at the next start.

    Raises:
        NotFound: it is not there any more.
        Conflict: another restore is being prepared.
    """
    with _alone():
        _aside(home, name)
        _clear(home)
        _note(home, name, "aside")


def pending(home: Home) -> bool:
    """Whether a restore waits for the next start."""
    return (home.root / _NOTE).exists()


def cancel(home: Home) -> None:
    """Give up a restore that waits, if one does.

    Raises:
        Conflict: one is being prepared.
    """
    with _alone():
        _clear(home)


def asides(home: Home) -> list[Aside]:
    """What earlier restores moved aside, newest first."""
    found = []
    for path in home.root.glob(f"{_ASIDE}*"):
        if _ASIDE_NAME.fullmatch(path.name) and path.is_dir():
            size = 0
            for file in path.rglob("*"):
                with suppress(FileNotFoundError):  # it is being deleted
                    size += file.lstat().st_size
            stamp = path.name.removeprefix(_ASIDE)[:16]
            at = datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
            found.append(Aside(path.name, at, size))
    return sorted(found, key=lambda aside: aside.name, reverse=True)


def delete_aside(home: Home, name: str) -> None:
    """Remove what was there before a restore, for good.

    Raises:
        NotFound: it is not there any more.
        Conflict: it waits to be put back, or a restore is being prepared.
    """
    with _alone():
        path = _aside(home, name)
        note = _read_note(home)
        if note is not None and note["from"] == name:
            raise Conflict("It waits to be put back at the next start.")
        # Cut off in the middle, a half of it must not look like something to put back.
        path.rename(home.root / f"{_GOING}{name}")
        fsync_dir(home.root)
        _clear_gone(home)


def put_in_place(home: Home, source: str, aside: str, items: Sequence[str]) -> None:
    """Move files of the home aside and put others in their place; cut off, the next start goes on with it.

    Only while no daemon runs, and none can start.

    Args:
        home: the home.
        source: a directory in it, with what is new.
        aside: a directory in it for what was there; it is made.
        items: the files it is about.
    """
    write_atomic(
        home.root / _NOTE, json.dumps({"from": source, "old": aside, "phase": "aside", "items": [*items]})
    )
    _carry_out(home)


def finish_restore(home: Home) -> bool:
    """Carry out a restore that waits. Does nothing while a daemon runs on the home.

    Returns:
        Whether something was put in place.
    """
    if not pending(home):
        return False
    with held_alone(home) as alone:
        if not alone:
            return False
        if not _carry_out(home):
            # Written in one step, so a disk or a person has spoilt it. What is there is served; what was
            # to come stays beside it.
            logger.error("%s cannot be read, so nothing is restored; it is kept as %s.", _NOTE, _SPOILT)
            _put_back(home)
            (home.root / _NOTE).rename(home.root / _SPOILT)
            return False
        (home.root / _RESTORED).touch(mode=0o600)
    return True


def _put_back(home: Home) -> None:
    """Without the note: what was moved aside comes back if nothing has taken its place yet.

    May be cut off and begun again, as long as the note is there.
    """
    aside = max(
        (path for path in home.root.glob("*_*") if _MOVED_NAME.fullmatch(path.name) and path.is_dir()),
        key=lambda path: (path.name.partition("_")[2], path.name),
        default=None,
    )
    if aside is None:
        return
    # The database's log goes first and comes back last: without it, the newest of it is lost.
    began = _there(home.store) and not _there(aside / "store.db") and _there(aside / "store.db-wal")
    ended = not _there(home.store) and _there(aside / "store.db")
    if not (began or ended):
        return
    for item in reversed(_ITEMS):
        if _there(aside / item) and not _there(home.root / item):
            (aside / item).rename(home.root / item)
    fsync_dir(home.root)
    with suppress(OSError):  # something else lies in it
        aside.rmdir()
    logger.error("What was moved to %s is back in its place.", aside.name)


def restored_at(home: Home) -> float:
    """When this home was last restored, in Unix time; 0 if it never was.

    Earlier backups tell of another past.
    """
    try:
        return (home.root / _RESTORED).stat().st_mtime
    except OSError:
        return 0.0


def _carry_out(home: Home) -> bool:
    note = _read_note(home)
    if note is None:
        return False
    source, old, items = home.root / note["from"], home.root / note["old"], note["items"]
    if note["phase"] == "aside":
        old.mkdir(exist_ok=True, mode=0o700)
        for item in items:
            # What was moved before a cut stands there already.
            if _there(home.root / item) and not _there(old / item):
                (home.root / item).rename(old / item)
                failpoint("restore.moved")
        fsync_dir(old)
        fsync_dir(home.root)
        note["phase"] = "place"
        write_atomic(home.root / _NOTE, json.dumps(note))
        failpoint("restore.aside")
    for item in items:
        if _there(source / item):
            (source / item).rename(home.root / item)
            failpoint("restore.placed")
    fsync_dir(home.root)
    failpoint("restore.finished")
    shutil.rmtree(source, ignore_errors=True)  # empty, or gone if this was cut off at the next line
    remove_durably(home.root / _NOTE)
    return True


def clear_leftovers(home: Home) -> None:
    """At the start of the daemon: remove what a restore that was cut off before its note has unpacked."""
    if not pending(home):
        shutil.rmtree(home.root / _STAGED, ignore_errors=True)
        _clear_gone(home)


@contextmanager
def _alone() -> Iterator[None]:
    """One act at a time: of two that unpack into the same place, each would mix with the other."""
    if not _preparing.acquire(blocking=False):
        raise Conflict("A restore is being prepared just now: wait until that has ended.")
    try:
        yield
    finally:
        _preparing.release()


def _clear(home: Home) -> None:
    remove_durably(home.root / _NOTE)
    shutil.rmtree(home.root / _STAGED, ignore_errors=True)
    _clear_gone(home)


def _clear_gone(home: Home) -> None:
    for path in home.root.glob(f"{_GOING}*"):
        shutil.rmtree(path, ignore_errors=True)


def _check(home: Home, place: Path, manifest: Manifest, actor: str) -> None:
    """Make what was unpacked fit to serve, or refuse it."""
    config = place / "config.toml"
    served = parse_config(decode(config.read_bytes())).model.name if config.is_file() else manifest.model
    if served != DEFAULT_NAME:  # that one comes by itself
        try:
            load_bundle(home.models / served)
        except BundleError as error:
            raise InvalidRequest(
                f"This backup needs the model {served!r}, which is not installed here. Import it first."
            ) from error
    made = Home(place)
    made.adapters.mkdir(exist_ok=True, mode=0o700)
    made.runs.mkdir(exist_ok=True, mode=0o700)
    if manifest.current is not None and (made.adapters / f"{manifest.current}{SUFFIX}").is_file():
        replace_symlink(made.current, f"{manifest.current}{SUFFIX}")
    store = Store(Database(made.store))  # brings an older schema up to date
    try:
        store.database.check()
        store.settings.delete("owner.sessions")
        store.settings.delete("owner.known")
        store.audit.add(actor, "backup.restored", {"made": manifest.created, "version": manifest.version})
        store.database.scrub()
    finally:
        store.close()


def _note(home: Home, source: str, phase: str) -> None:
    stem = f"{_ASIDE}{datetime.fromtimestamp(time.time(), UTC):%Y%m%dT%H%M%SZ}"
    old, number = stem, 1
    while (home.root / old).exists():
        number += 1
        old = f"{stem}-{number}"
    items = [*_ITEMS, _TLS] if (home.root / source / _TLS).is_dir() else _ITEMS
    write_atomic(home.root / _NOTE, json.dumps({"from": source, "old": old, "phase": phase, "items": items}))


def _read_note(home: Home) -> dict[str, Any] | None:
    """The note, None if there is none or no restore can come of what it says."""
    try:
        note = json.loads((home.root / _NOTE).read_text(encoding="utf-8"))
        items = note.setdefault("items", list(_ITEMS))
        if note["phase"] in ("aside", "place") and all(map(_inside, (note["from"], note["old"], *items))):
            return dict(note)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    return None


def _inside(name: str) -> bool:
    """Whether it is a path below the home."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name


def _aside(home: Home, name: str) -> Path:
    path = home.root / name
    if not _ASIDE_NAME.fullmatch(name) or not path.is_dir():
        raise NotFound("That is not there any more.", param="name")
    return path


def _there(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def sync_tree(place: Path) -> None:
    """Have all that is in a directory on the disk."""
    for directory, _, files in os.walk(place):
        for name in files:
            _fsync(Path(directory) / name)
        fsync_dir(Path(directory))


def _fsync(path: Path) -> None:
    if path.is_symlink():
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
