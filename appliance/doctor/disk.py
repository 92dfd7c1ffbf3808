"""The disk: whether it can be written, what is left of it, and what takes it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from appliance.backup.archive import SPARE_BYTES
from appliance.doctor.box import Box, Tell
from appliance.doctor.finding import Finding, error, ok, warning

NEARLY = 0.95
"""Share of the disk in use, or of the files that it can have."""
MB = 1e6
FREE = (
    "Delete old backups (backups/), what earlier restores moved aside (before-restore_*), models that are "
    "not "
    "served, or files that are not the box's."
)


def look(box: Box, tell: Tell) -> Iterator[Finding]:
    """Collecting pauses on a full disk, and runs are put off before."""
    root = box.home.root
    if not root.exists():
        return
    about, usage = os.statvfs(root), shutil.disk_usage(root)
    least = box.config.resources.min_free_disk_mb * 1024 * 1024
    if about.f_flag & os.ST_RDONLY:
        yield error(
            f"The file system of {root} can only be read, often after an error of the disk.",
            "Look at `dmesg`, check the disk, and mount it for writing again.",
        )
    if usage.free < SPARE_BYTES:
        yield error(f"The disk is full: {usage.free / MB:,.0f} MB are free. Nothing is collected.", FREE)
    elif usage.free < least:
        yield warning(
            f"{usage.free / MB:,.0f} MB of disk are free; runs are put off below {least / MB:,.0f} MB.", FREE
        )
    elif usage.used > NEARLY * usage.total:
        yield warning(
            f"The disk is {usage.used / usage.total:.0%} full: {usage.free / MB:,.0f} MB are free.", FREE
        )
    if about.f_files and about.f_favail < (1 - NEARLY) * about.f_files:
        yield warning(
            f"The disk has room for {about.f_favail:,} more files, whatever their size.",
            "Find the directory with very many files: `du --inodes -x / | sort -n | tail`.",
        )
    if usage.free >= max(least, SPARE_BYTES) and usage.used <= NEARLY * usage.total:
        yield ok(
            f"{usage.free / 1e9:,.1f} of {usage.total / 1e9:,.1f} GB are free. The home takes {_parts(root)}."
        )


def _parts(root: Path) -> str:
    sizes = {path.name: size_of(path) for path in root.iterdir()}
    large = sorted((size, name) for name, size in sizes.items() if size > 1e6)[::-1][:4]
    told = ", ".join(f"{name} {size / MB:,.0f}" for size, name in large)
    return f"{sum(sizes.values()) / MB:,.0f} MB{f' ({told})' if told else ''}"


def size_of(path: Path) -> int:
    """Bytes that a file or all of a directory takes."""
    total = 0
    with suppress(OSError):
        if path.is_symlink() or not path.is_dir():
            return path.lstat().st_size
    for directory, _, files in os.walk(path):
        for name in files:
            with suppress(OSError):  # it went just now
                total += Path(directory, name).lstat().st_size
    return total
