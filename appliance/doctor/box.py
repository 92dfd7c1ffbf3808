"""The box as a check sees it: its home, its settings, its store, and what its daemon says of itself."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from appliance.config import Config, load_config
from appliance.errors import BundleError, ConfigError, ShammahError
from appliance.home import Home
from appliance.model.bundle import Bundle, load_bundle
from appliance.store import Store
from appliance.store.reading import ReadOnlyDatabase, schema

Tell = Callable[[float], None]
"""Takes how much of a check is done, from 0 to 1."""


@dataclass(frozen=True)
class Standing:
    """A daemon that runs on the home.

    Attributes:
        host: where it listens.
        started: Unix time, by its clock of then.
        booted: the same moment, in seconds since the machine started; None when it did not say.
        problem: why it does not answer; the rest is empty then.
        healthy: what `/health` says.
        ready: what `/ready` says.
        version: of its program.
        adapter: what it answers with; None for the base model.
        learning: what `/v1/training/status` says.
    """

    pid: int
    host: str
    port: int
    started: float
    booted: float | None = None
    problem: str = ""
    healthy: bool = False
    ready: bool = False
    version: str = ""
    adapter: str | None = None
    learning: dict[str, Any] = field(default_factory=dict)


def written_down(home: Home) -> Standing | None:
    """What the daemon wrote down when it started, if anything; it may be dead by now."""
    try:
        data = json.loads(home.daemon.read_text(encoding="utf-8"))
        booted = data.get("booted")
        return Standing(
            pid=int(data["pid"]),
            host=str(data["host"]),
            port=int(data["port"]),
            started=float(data["started"]),
            booted=None if booted is None else float(booted),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


@dataclass(frozen=True)
class Box:
    """What is looked at.

    Attributes:
        config: the settings; all defaults when the file cannot be used.
        problems: what is wrong with the file.
        store: for reading; None when there is none, or none of this release's schema.
        standing: the daemon; None when none runs.
        quick: leave out what reads gigabytes.
        now: Unix time.
    """

    home: Home
    config: Config
    problems: tuple[str, ...] = ()
    store: Store | None = None
    standing: Standing | None = None
    quick: bool = False
    now: float = 0.0

    @cached_property
    def bundle(self) -> Bundle | None:
        """The model to serve, if its files are there."""
        try:
            return load_bundle(self.home.models / self.config.model.name)
        except BundleError:
            return None


@contextmanager
def looked_at(home: Home, standing: Standing | None, *, quick: bool) -> Iterator[Box]:
    """The box with a store of its own to read from, closed in the end."""
    config, problems = Config(), tuple[str, ...]()
    try:
        config = load_config(home.config)
    except ConfigError as error:
        problems = tuple(error.problems)
    store = _store(home)
    try:
        yield Box(home, config, problems, store, standing, quick, time.time())
    finally:
        if store is not None:
            store.close()


def _store(home: Home) -> Store | None:
    try:
        database = ReadOnlyDatabase(home.store)
    except ShammahError:
        return None
    try:
        found, known = schema(database)
    except ShammahError:
        found, known = 0, -1
    if found != known:
        database.close()
        return None
    return Store(database)
