"""The directory of adapter files and the link `current`, which names the one in service."""

from __future__ import annotations

import errno
import os
import re
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

from appliance.adapters.file import SUFFIX, Adapter, read_adapter
from appliance.errors import AdapterInvalid, Conflict, NotFound, ShammahError
from appliance.failpoints import failpoint
from appliance.files import fsync_dir, publish_file, remove_durably, replace_symlink, storage_errors
from appliance.home import Home
from appliance.model.bundle import Manifest

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
RESERVED = ("base", "current")
"""Words that stand for something else where an adapter's name is expected."""
MOST_SEEN = 1000

Names: TypeAlias = list[str]


def valid_name(name: str) -> bool:
    """Whether an adapter can be called that: one harmless path component."""
    return NAME.fullmatch(name) is not None and name not in RESERVED


class Registry:
    """Adapter files by name (the file's stem), and which one is in service."""

    def __init__(self, home: Home, manifest: Manifest) -> None:
        self._home = home
        self._manifest = manifest
        self._looking = threading.Lock()
        self._seen: OrderedDict[str, tuple[tuple[int, int, int], str | AdapterInvalid]] = OrderedDict()

    @property
    def directory(self) -> Path:
        return self._home.adapters

    def list(self) -> Names:
        """Names of the files that are there, newest first. Links and temporary files don't count."""
        found = []
        for entry in os.scandir(self.directory):
            name = entry.name.removesuffix(SUFFIX)
            if name != entry.name and valid_name(name) and entry.is_file(follow_symlinks=False):
                found.append((entry.stat(follow_symlinks=False).st_mtime_ns, name))
        return [name for _, name in sorted(found, reverse=True)]

    def path(self, name: str) -> Path:
        """Where the adapter of that name is.

        Raises:
            NotFound: there is none; also for names that are no names, so that none leads elsewhere.
        """
        path = self.directory / f"{name}{SUFFIX}"
        if not valid_name(name) or path.is_symlink() or not path.is_file():
            raise NotFound(f"There is no adapter {name!r}.", param="name")
        return path

    def load(self, name: str) -> Adapter:
        """Read and validate an adapter.

        Raises:
            NotFound: there is none of that name.
            AdapterInvalid: it is damaged or belongs to another base.
        """
        return read_adapter(self.path(name), self._manifest)

    def identity(self, name: str) -> str:
        """The hash of an adapter's file that could be loaded. A file that has not changed is not read again.

        Raises:
            NotFound: there is none of that name.
            AdapterInvalid: it is damaged or belongs to another base.
        """
        stat = self.path(name).stat()
        stamp = stat.st_ino, stat.st_size, stat.st_mtime_ns
        with self._looking:
            seen = self._seen.get(name)
            if seen is None or seen[0] != stamp:
                try:
                    found: str | AdapterInvalid = self.load(name).sha256
                except AdapterInvalid as error:
                    found = AdapterInvalid(error.message)
                seen = self._seen[name] = stamp, found
                self._seen.move_to_end(name)
                if len(self._seen) > MOST_SEEN:
                    self._seen.popitem(last=False)
        if isinstance(seen[1], AdapterInvalid):
            raise AdapterInvalid(seen[1].message)
        return seen[1]

    def new_name(self) -> str:
        """A name for a new adapter, from the present time, that no file has."""
        stem = f"adapter_{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
        name, number = stem, 1
        while os.path.lexists(self.directory / f"{name}{SUFFIX}"):
            number += 1
            name = f"{stem}-{number}"
        return name

    def add(self, temp: Path, name: str) -> Path:
        """Move a finished file into the directory; a file of that name is never overwritten.

        Raises:
            Conflict: the name is taken.
            StorageFull: there is no room for it.
        """
        if not valid_name(name):
            raise NotFound(f"{name!r} cannot be the name of an adapter.", param="name")
        path = self.directory / f"{name}{SUFFIX}"
        if temp.stat().st_dev != self.directory.stat().st_dev:
            near = self.directory / f".{name}.incoming"
            with storage_errors(path.name):
                shutil.copyfile(temp, near)
            temp.unlink()
            temp = near
        try:
            with storage_errors(path.name):
                with temp.open("rb") as file:
                    os.fsync(file.fileno())
                path.hardlink_to(temp)  # unlike a rename this fails when the name is taken
                failpoint("adapters.linked")
                temp.unlink()
                fsync_dir(self.directory)
        except FileExistsError as error:
            raise Conflict(f"There is an adapter {name!r} already.", param="name") from error
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP) or path.exists():
                raise
            publish_file(temp, path)  # a file system without hard links, e.g. a memory stick
        return path

    def remove(self, name: str) -> None:
        """Delete the file of an adapter, durably. The caller has seen to it that it is not in service.

        Raises:
            NotFound: there is none.
        """
        remove_durably(self.path(name))

    def current(self) -> str | None:
        """Name of the adapter that `current` points to; None for base, and for a broken link."""
        try:
            return self.target()
        except AdapterInvalid:
            return None

    def set_current(self, name: str | None) -> None:
        """Point `current` to an adapter, or remove it for base, in one atomic step.

        Raises:
            NotFound: there is no such adapter.
            StorageFull: there is no room for a link; `current` is as before.
        """
        if name is None:
            remove_durably(self._home.current)
        else:
            replace_symlink(self._home.current, self.path(name).name)

    def load_at_start(self, accepted: Callable[[Adapter], bool]) -> tuple[Adapter | None, Names]:
        """The adapter to begin with: `current`, or if that is broken the newest good one, or base.

        Args:
            accepted: whether the gate has passed this very adapter.

        Returns:
            The adapter, and what a person should know if it is not what `current` said. The link is
            made to say what is returned.
        """
        notes = []
        try:
            name = self.target()
            if name is None:
                return None, []
            return self._load_accepted(name, accepted), []
        except ShammahError as error:
            notes.append(f"The adapter in service cannot be used: {error}")
        for name in self.list():
            try:
                adapter = self._load_accepted(name, accepted)
                self.set_current(name)
            except ShammahError:
                continue
            notes.append(f"Serving with {name} instead, the newest adapter that passes.")
            return adapter, notes
        try:
            self.set_current(None)
        except OSError as error:  # somebody made `current` a directory
            notes.append(f"{self._home.current} cannot be removed ({error.strerror}).")
        notes.append("Serving with the base model instead.")
        return None, notes

    def _load_accepted(self, name: str, accepted: Callable[[Adapter], bool]) -> Adapter:
        adapter = self.load(name)
        if not accepted(adapter):
            raise AdapterInvalid(f"{name} has not passed the gate, or was changed since.")
        return adapter

    def target(self) -> str | None:
        """What `current` names; None for base.

        Raises:
            AdapterInvalid: it is no link, or leads to something else than an adapter of this directory.
        """
        link = self._home.current
        try:
            target = link.readlink()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise AdapterInvalid(f"{link} is not a symbolic link.") from error
        name = target.name.removesuffix(SUFFIX)
        if target != Path(f"{name}{SUFFIX}"):
            raise AdapterInvalid(f"{link} leads to {str(target)!r}, out of the directory of adapters.")
        try:
            self.path(name)
        except NotFound as error:
            raise AdapterInvalid(f"{link} names {name!r}, which is gone.") from error
        return name
