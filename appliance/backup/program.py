"""The program that makes an automatic backup: a child of the daemon, which may be stopped at any line.

It prints one JSON object: `{"event": "done", "name": …}`, with null when nothing has changed since the last
backup, or `{"event": "error", "message": …}`, with exit code 1.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sqlite3
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from appliance.backup import archive
from appliance.errors import InvalidRequest, ShammahError, StorageFull, Unavailable
from appliance.files import in_words, publish_file, remove_durably, storage_errors
from appliance.home import Home


def main(argv: Sequence[str] | None = None) -> int:
    """Make the backup, let old ones go, and copy it elsewhere if that is wanted."""
    parser = argparse.ArgumentParser(prog="python -m appliance.backup.program")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--out", help="a path in the home's backups/, by which an orphan is known")
    parser.add_argument("--model", required=True)
    parser.add_argument("--base-hash", required=True)
    parser.add_argument("--keep", type=int, required=True)
    parser.add_argument("--keep-weeks", type=int, required=True)
    parser.add_argument("--copy-to", type=Path)
    given = parser.parse_args(argv)
    home = Home(given.home)
    try:
        made = archive.create_automatic(home, given.model, given.base_hash)
        prune(home.backups, given.keep, given.keep_weeks)
        if given.copy_to is not None:
            copy_newest(home, given.copy_to)
            prune(given.copy_to, given.keep, given.keep_weeks)
    except (ShammahError, OSError, sqlite3.Error) as error:
        print(json.dumps({"event": "error", "message": in_words(error)}), flush=True)
        return 1
    print(json.dumps({"event": "done", "name": made.name if made else None}), flush=True)
    return 0


def surplus(names: Sequence[str], keep: int, weeks: int) -> list[str]:
    """Which automatic backups may go, oldest first; those that a person made are never among them.

    Args:
        names: of all archives there are.
        keep: how many of the newest stay.
        weeks: of so many weeks before these, the newest of each stays.
    """
    own = sorted(
        (name for name in names if name.startswith(f"{archive.BOX}_") and archive.stamp(name)),
        key=archive.stamp,
        reverse=True,
    )
    seen: set[int] = set()
    going = []
    for name in own[keep:]:
        week = int(archive.made_at(name) // (7 * 86_400))
        if week not in seen and len(seen) < weeks:
            seen.add(week)
        else:
            going.append(name)
    return going[::-1]


def prune(directory: Path, keep: int, weeks: int) -> list[str]:
    """Remove them; returns their names."""
    going = surplus([path.name for path in directory.iterdir()], keep, weeks)
    for name in going:
        remove_durably(directory / name)
    return going


def copy_newest(home: Home, target: Path) -> None:
    """Put the newest automatic backup into another directory, if it is not there, and read it once more.

    Raises:
        Unavailable: the directory is not there: a disk is not plugged in, a machine not reached.
        StorageFull: there is no room.
        InvalidRequest: what was written there is not what was read.
    """
    if not target.is_dir():
        raise Unavailable(f"The backup is made, but not copied: {target} is not there.")
    newest = next((found for found in archive.backups(home) if found.automatic and found.manifest), None)
    if newest is None:
        return
    place = target / newest.name
    if place.is_file() and place.stat().st_size == newest.size:
        return
    for leftover in target.glob(f".{archive.BOX}_*.part"):
        with suppress(OSError):
            leftover.unlink()
    draft = target / f".{newest.name}.part"
    try:
        with storage_errors(f"the copy of the backup in {target}"):
            if shutil.disk_usage(target).free < newest.size:
                raise StorageFull(f"The backup is made, but not copied: {target} has no room for it.")
            shutil.copyfile(newest.path, draft)
            draft.chmod(0o600)
            archive.verify(draft)
            publish_file(draft, place)
    except InvalidRequest as error:
        raise InvalidRequest(f"The copy of the backup in {target} is damaged: {error.message}") from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
