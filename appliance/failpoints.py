"""Named places where a test makes a real process die, hang or meet a full disk.

They cost a look into an empty dictionary unless `SHAMMAH_FAILPOINTS` is in the environment, which is for
tests only. Its value is a specification, or the path of a file that holds one and may change meanwhile:

    gate.judged=kill                the process ends as by SIGKILL when it gets there
    engine.step=hang                this thread never goes on (as long as the specification says so)
    store.commit=enospc             OSError: no space left on device; `eio` and `erofs` likewise
    collect.stored=kill@3           only from the third time on

Several are parted by commas or lines. Child processes inherit them.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import threading
import time
from pathlib import Path

logger = logging.getLogger(__name__)

VARIABLE = "SHAMMAH_FAILPOINTS"
_ERRORS = {"enospc": errno.ENOSPC, "eio": errno.EIO, "erofs": errno.EROFS}
_HANG_SECONDS = 0.1

_source = os.environ.get(VARIABLE, "")
_file = Path(_source) if _source.startswith("/") else None
_counting = threading.Lock()
_reached: dict[str, int] = {}


def _parse(text: str) -> dict[str, tuple[str, int]]:
    """By name: what shall happen, and from which time on."""
    found = {}
    for item in text.replace("\n", ",").split(","):
        if item.strip():
            name, _, act = item.strip().partition("=")
            kind, _, first = act.partition("@")
            if kind not in ("kill", "hang", *_ERRORS):
                raise ValueError(
                    f"{VARIABLE}: {item.strip()!r} is not NAME=kill|hang|{'|'.join(_ERRORS)}[@N]"
                )
            found[name] = (kind, int(first or 1))
    return found


_planted = {} if _file else _parse(_source)


def failpoint(name: str) -> None:
    """Where something may go wrong, if a test says so.

    Args:
        name: `room.step`; it is in `tests/faults`, too.

    Raises:
        OSError: as the test wants.
    """
    if not _source or (planted := _read().get(name)) is None:
        return
    kind, first = planted
    with _counting:
        _reached[name] = _reached.get(name, 0) + 1
        if _reached[name] < first:
            return
    logger.warning("Failpoint %s: %s.", name, kind)
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "hang":
        while name in _read():
            time.sleep(_HANG_SECONDS)
    else:
        number = _ERRORS[kind]
        raise OSError(number, os.strerror(number), name)


def _read() -> dict[str, tuple[str, int]]:
    if _file is None:
        return _planted
    try:
        return _parse(_file.read_text())
    except FileNotFoundError:
        return {}
