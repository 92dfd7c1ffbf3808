"""Durable file writes: after a power cut a path holds its old content or its new, never a mix."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.errors import StorageFailing, StorageFull, StorageReadOnly, Unavailable
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
        if (known := _storage_error(error, what)) is not None:
            raise known from error
        raise


def _storage_error(error: OSError, what: str) -> Unavailable | None:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull(f"The disk is full: {what} was not written. Free space and retry.")
    if error.errno == errno.EROFS:
        return StorageReadOnly(f"The disk is read-only: {what} was not written.")
    if error.errno == errno.EIO:
        return StorageFailing(f"The disk gave an error: {what} was not written.")
    return None


def in_words(error: BaseException) -> str:
    """What a person is told of an error that ended some work."""
    if isinstance(error, OSError):
        file = Path(os.fsdecode(error.filename)).name if isinstance(error.filename, str | bytes) else "a file"
        if (known := _storage_error(error, file)) is not None:
            return known.message
    return str(error) or type(error).__name__


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
