"""A copy of the database as it was before a newer release changes its schema.

A migration goes forward only. Should the new release be no good, the owner puts this copy and the release
before it back; so a migration does not begin unless the copy is there, whole and on the disk.
"""

from __future__ import annotations

import re
import shutil
import sqlite3
import tempfile
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from appliance.errors import StorageDamaged, StorageFull
from appliance.failpoints import failpoint
from appliance.files import publish_file, remove_durably, storage_errors

NAME = re.compile(r"before-migration_(\d+)-(\d+)_(\d{8}T\d{6}Z)\.db", re.ASCII)
KEPT = 3
"""Copies that stay: releases do not change the schema often, and nobody goes back further."""
_WORK = ".keeping-"
SPARE_BYTES = 10_000_000
"""Kept free on the disk: the migration itself needs room, too."""


def copies(backups: Path) -> list[Path]:
    """The copies that are there, newest first."""
    found = [path for path in backups.glob("before-migration_*.db") if NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: path.name.rpartition("_")[2], reverse=True)


def clear_leftovers(backups: Path) -> None:
    """Remove what a copy that was cut off left behind. The database has its last schema: nobody needs it."""
    for path in backups.glob(f"{_WORK}*"):
        shutil.rmtree(path, ignore_errors=True)


def keep_copy(backups: Path, store: Path, before: int, after: int) -> Path | None:
    """Copy the database into `backups/`, read the copy again, and let the oldest ones go.

    Args:
        backups: the directory.
        store: the database, which somebody may have open.
        before: its schema.
        after: what it is about to be brought to.

    Returns:
        The copy; None when another process has migrated the database meanwhile, and made one.

    Raises:
        StorageFull: there is no room for it.
        StorageDamaged: the copy is not whole, so the database is not.
        sqlite3.Error: the database cannot be read.
    """
    from appliance.store.db import copy_database, find_damage

    with storage_errors("the copy of the store before its migration"):
        backups.mkdir(exist_ok=True, mode=0o700)
        size = sum(path.stat().st_size for path in store.parent.glob(f"{store.name}*"))
        if shutil.disk_usage(backups).free < size + SPARE_BYTES:
            raise StorageFull(
                f"The store has to be brought from schema {before} to {after}, and the disk has no room to "
                f"copy it first: nothing was changed. Free {(size + SPARE_BYTES) // 1_000_000 + 1:,} MB and "
                "start again, or go back to the release before."
            )
        name = (
            f"before-migration_{before}-{after}_{datetime.fromtimestamp(time.time(), UTC):%Y%m%dT%H%M%SZ}.db"
        )
        # Others may do the same just now, in this process, too.
        with tempfile.TemporaryDirectory(prefix=_WORK, dir=backups) as work:
            temp = Path(work) / name
            copy_database(store, temp)
            failpoint("migrate.copied")
            with closing(sqlite3.connect(temp)) as copy:
                found = int(copy.execute("PRAGMA user_version").fetchone()[0])
            if found != before:
                return None
            if problem := find_damage(temp):
                raise StorageDamaged(f"{store.name} is damaged ({problem}), so it is not migrated.")
            publish_file(temp, backups / name)
        for path in copies(backups)[KEPT:]:
            remove_durably(path)
    return backups / name
