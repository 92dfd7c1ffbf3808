"""A few megabytes put by: on a full disk the box could not even start, and nobody could log in to make room.

The file is given up when a start finds the disk full, and made anew when there is room again.
"""

from __future__ import annotations

import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path

from appliance.home import Home

logger = logging.getLogger(__name__)

RESERVE_BYTES = 4_000_000
ROOM = 50
"""It is made when so many times its size is free."""


def put_by(home: Home) -> None:
    """Make the file, if it is not there and the disk has plenty of room. Never raises."""
    path = _path(home)
    with suppress(OSError):
        if path.exists() or shutil.disk_usage(home.root).free < ROOM * RESERVE_BYTES:
            return
        fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, RESERVE_BYTES)
        except OSError:
            path.unlink(missing_ok=True)
        finally:
            os.close(fd)


def give_up(home: Home) -> bool:
    """Free what was put by; says whether there was something."""
    try:
        _path(home).unlink()
    except OSError:
        return False
    logger.warning("The disk is full: what was put by for that is used up to start.")
    return True


def _path(home: Home) -> Path:
    return home.root / ".reserve"
