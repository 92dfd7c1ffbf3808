"""What is on this home's disk, opened for the length of a command. Safe beside a running daemon."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import appliance
from appliance.errors import Conflict
from appliance.home import Home
from appliance.lock import held_alone

if TYPE_CHECKING:
    from appliance.adapters.file import Adapter
    from appliance.adapters.registry import Registry
    from appliance.learning.switch import Switch
    from appliance.model.bundle import Bundle
    from appliance.store import Store


def become_owner(home: Home) -> Callable[[], None]:
    """Root works as the user whose home it is: what it left there as its own, the daemon could not touch.

    Where that user cannot read this program (a checkout in a closed home directory), root stays root.

    Returns:
        What to do at the end.
    """
    try:
        owner = home.root.stat()
    except OSError:
        return lambda: None
    if os.geteuid() != 0 or owner.st_uid == 0:
        return lambda: None
    if not all(_open_to_all(Path(place)) for place in (sys.prefix, sys.base_prefix, appliance.__file__)):
        return lambda: _give_back(home.root, owner.st_uid, owner.st_gid)
    os.setgroups([])
    os.setgid(owner.st_gid)
    os.setuid(owner.st_uid)
    return lambda: None


def _open_to_all(place: Path) -> bool:
    return all(directory.stat().st_mode & stat.S_IXOTH for directory in place.resolve().parents)


def _give_back(root: Path, user: int, group: int) -> None:
    for directory, names, files in os.walk(root):
        for path in (Path(directory) / name for name in (*names, *files)):
            with contextlib.suppress(FileNotFoundError):
                if path.lstat().st_uid == 0:
                    os.lchown(path, user, group)


@contextlib.contextmanager
def open_store() -> Iterator[Store]:
    """The home's store."""
    from appliance.store import Store

    store = Store.open(Home.default())
    try:
        yield store
    finally:
        store.close()


@contextlib.contextmanager
def no_daemon(home: Home) -> Iterator[None]:
    """Keep a daemon from starting meanwhile: what follows must not happen behind its back.

    Raises:
        Conflict: one is starting or stopping right now.
    """
    home.ensure()
    with held_alone(home) as alone:
        if not alone:
            raise Conflict("The daemon is starting or stopping: try again in a moment.")
        yield


def served_bundle(home: Home) -> Bundle:
    """The bundle that `config.toml` names; while that is broken, the one that is served meanwhile."""
    from appliance.config import load_to_serve
    from appliance.model.bundle import load_bundle

    return load_bundle(home.models / load_to_serve(home.config, home.good_config).config.model.name)


class _Resting:
    """Stands where the engine is while no daemon runs: what the link says is in service at the next start."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    @property
    def adapter(self) -> str | None:
        return self._registry.current()

    async def swap(self, adapter: Adapter | None, expected: tuple[int, ...] | None = None) -> None:
        """Nothing to do: the link is what counts."""


def resting_switch(home: Home, store: Store) -> Switch:
    """The switch while no daemon runs: the same rules, on link and history only."""
    from appliance.events import EventBus
    from appliance.learning.switch import Switch

    registry = open_registry(home)
    return Switch(registry, store, _Resting(registry), EventBus())


def end_runs(home: Home, store: Store) -> None:
    """End the runs that wait for the next start to go on with them. Only inside `no_daemon`."""
    from appliance.config import load_to_serve
    from appliance.learning.child import kill_orphans
    from appliance.learning.retry import end_stopped
    from appliance.learning.trainer import discard

    for run in store.runs.unfinished():
        if run.adapter is None:
            kill_orphans(home.runs / run.id)
            end_stopped(store, load_to_serve(home.config, home.good_config).config, run)
            discard(home.runs / run.id)


def open_registry(home: Home) -> Registry:
    """The directory of adapters, for the served bundle."""
    from appliance.adapters.registry import Registry

    return Registry(home, served_bundle(home).manifest)


def adapter_path(home: Home, adapter: str) -> Path:
    """The file of an adapter that is given by its name, or by a path to anywhere.

    Raises:
        NotFound: it is neither.
    """
    path = Path(adapter)
    return path if path.suffix and path.is_file() else open_registry(home).path(adapter)
