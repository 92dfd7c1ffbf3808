"""Who has a home to itself: one daemon, or one command that no daemon may start beside.

Both the file and the directory are locked. The file is what older releases look at; whoever deletes it makes
room for another, but nobody can put another directory there under a daemon.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from appliance.home import Home

NAME = "daemon.lock"


@contextmanager
def held_alone(home: Home) -> Iterator[bool]:
    """Keep others out while it lasts; says whether they are. The kernel lets go however this process ends."""
    with ExitStack() as both:
        yield _lock(home, both, fcntl.LOCK_EX, os.O_CREAT | os.O_RDWR)


def is_held(home: Home) -> bool:
    """Whether somebody has it to himself."""
    with ExitStack() as both:
        return not _lock(home, both, fcntl.LOCK_SH, os.O_RDONLY)


def _lock(home: Home, both: ExitStack, how: int, file_flags: int) -> bool:
    for path, flags in ((home.root / NAME, file_flags), (home.root, os.O_RDONLY | os.O_DIRECTORY)):
        try:
            fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            if flags & os.O_CREAT:
                raise
            continue  # nobody has ever had it, or the file was deleted
        both.callback(os.close, fd)
        try:
            fcntl.flock(fd, how | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
