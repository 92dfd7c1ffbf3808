"""Durable file writes: after a power cut a path holds its old content or its new, never a mix."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.errors import StorageFailing, StorageFull, StorageReadOnly
from appliance.failpoints import failpoint


def fsync_dir(path: Path) -> None:
    """Make renames and links inside `path` survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Turn what a disk may say into what a person can act on, leaving other errors alone.

    Raises:
        StorageFull: no space is left, or the quota is exceeded.
        StorageReadOnly: the file system takes no writes.
        StorageFailing: the disk gave an error.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"The disk is full: {what} was not written. Free space and retry.") from error
        if error.errno == errno.EROFS:
            raise StorageReadOnly(f"The disk is read-only: {what} was not written.") from error
        if error.errno == errno.EIO:
            raise StorageFailing(f"The disk gave an error: {what} was not written.") from error
        raise


def write_atomic(path: Path, data: bytes | str, *, mode: int = 0o600) -> None:
    """Write `data` to `path` by temp file, fsync and rename.

    Raises:
        StorageFull: the disk is full; `path` is untouched.
    """
    payload = data.encode() if isinstance(data, str) else data
    with storage_errors(path.name):
        fd, temp = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(fd, "wb") as file:
                os.fchmod(file.fileno(), mode)
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            failpoint("files.written")
            Path(temp).replace(path)
        except BaseException:
            Path(temp).unlink(missing_ok=True)
            raise
        failpoint("files.replaced")
        fsync_dir(path.parent)


def publish_file(temp: Path, path: Path) -> None:
    """Move a finished temp file (same file system) to its final name, durably."""
    with storage_errors(path.name):
        fd = os.open(temp, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        temp.replace(path)
        fsync_dir(path.parent)


def replace_symlink(link: Path, target: str) -> None:
    """Point `link` at `target` (a name relative to the link) in one atomic step."""
    fresh = link.with_name(f".{link.name}.{os.getpid()}")
    with storage_errors(link.name):
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target)
        failpoint("files.link")
        fresh.replace(link)
        fsync_dir(link.parent)


def remove_durably(path: Path) -> None:
    """Unlink `path` if it exists and make that survive a power cut."""
    path.unlink(missing_ok=True)
    fsync_dir(path.parent)
