"""What of the home takes how much of the disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from appliance.home import Home

MB = 1_000_000


@dataclass(frozen=True)
class Share:
    """One kind of thing in the home: how many there are and the bytes they take."""

    name: str
    label: str
    count: int
    size: int


Shares: TypeAlias = tuple[Share, ...]


@dataclass(frozen=True)
class Usage:
    """The home on its disk, in bytes.

    Attributes:
        shares: by kind.
        counted: what the budget is about: all of them but the models.
        total: all of them.
        free: that the disk has left.
        disk: the disk's size.
    """

    shares: Shares
    counted: int
    total: int
    free: int
    disk: int


_PARTS = (
    ("store", "Examples, history, settings of devices", ("store.db", "store.db-wal", "store.db-shm")),
    ("adapters", "Adapters", ("adapters",)),
    ("runs", "Files of training runs", ("runs",)),
    ("backups", "Backups", ("backups",)),
    ("restored", "What was here before a restore", ("before-restore_*",)),
    ("damaged", "Damaged databases that were moved aside", ("damaged_*",)),
    ("logs", "Logs", ("logs",)),
    ("models", "Models", ("models",)),
)


def measure(home: Home) -> Usage:
    """Look at every file of the home. Takes as long as listing them."""
    shares = []
    known: set[str] = set()
    for name, label, patterns in _PARTS:
        tops = [path for pattern in patterns for path in home.root.glob(pattern)]
        known |= {path.name for path in tops}
        count, size = _weigh(tops)
        shares.append(Share(name, label, count, size))
    others = [path for path in home.root.iterdir() if path.name not in known] if home.root.is_dir() else []
    shares.append(Share("other", "Everything else", *_weigh(others)))
    total = sum(share.size for share in shares)
    models = sum(share.size for share in shares if share.name == "models")
    disk = shutil.disk_usage(home.root)
    return Usage(tuple(shares), total - models, total, disk.free, disk.total)


def size_of(path: Path) -> int:
    """Bytes on the disk of a file, or of all in a directory."""
    return _weigh([path])[1]


def _weigh(tops: Iterable[Path]) -> tuple[int, int]:
    count = size = 0
    for top in tops:
        files = [top]
        if top.is_dir() and not top.is_symlink():
            files = [Path(place) / name for place, _, names in os.walk(top) for name in names]
        for file in files:
            with suppress(OSError):  # it has gone just now
                size += file.lstat().st_blocks * 512
                count += 1
    return count, size
