"""What a kill left half-written, removed after the next start: nothing of it is ever looked at again.

A file that has its final name is whole; one that is still to get it lies beside, under a hidden name. At the
start some of these may belong to a command that runs beside the daemon, so only those go that are still
there, untouched, a while later. What only a daemon makes goes at once.
"""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
from contextlib import suppress
from pathlib import Path

from appliance.backup import archive, restore
from appliance.console import upload
from appliance.home import Home
from appliance.store import keep

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 10.0
"""No small file takes that long to write."""
# As `write_atomic`, `replace_symlink` and the registry of adapters name them.
_UNFINISHED = re.compile(r"\..+\.([a-z0-9_]{8}|\d+|incoming)", re.ASCII)

State = tuple[int, int]


async def sweep(home: Home, patience: float = PATIENCE_SECONDS) -> None:
    """Remove what a kill left. The daemon has the home, and has written nothing yet."""
    await asyncio.to_thread(_remove_own, home)
    found = await asyncio.to_thread(unfinished, home)
    if found:
        await asyncio.sleep(patience)
        await asyncio.to_thread(_remove, home, found)


def unfinished(home: Home) -> dict[Path, State]:
    """Files that have not got their name, with what tells whether they are still the same."""
    found = {}
    for directory in (home.root, home.adapters, home.backups, *home.runs.glob("*/")):
        for path in directory.glob(".*"):
            if _UNFINISHED.fullmatch(path.name) and (path.is_symlink() or path.is_file()):
                with suppress(FileNotFoundError):
                    status = path.lstat()
                    found[path] = status.st_ino, status.st_mtime_ns
    return found


def _remove(home: Home, found: dict[Path, State]) -> None:
    now = unfinished(home)
    for path, state in found.items():
        if now.get(path) == state:
            with suppress(OSError):
                path.unlink()
                logger.info("Removed %s, which was never finished", path.relative_to(home.root))


def _remove_own(home: Home) -> None:
    with suppress(OSError):
        archive.clear_leftovers(home)
        restore.clear_leftovers(home)
        keep.clear_leftovers(home.backups)
        for near in (home.adapters, home.backups, home.runs):
            for path in near.glob(f"{upload.PREFIX}*"):
                shutil.rmtree(path, ignore_errors=True)
