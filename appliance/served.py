"""Which model the box is known to come up with, so that another one that fails is no dead end.

`served.json` in the home says it. A model that is not known to work is on trial when the daemon starts
with it. If it cannot be loaded, or the daemon dies under it, the box goes back to the known one, in
`config.toml` too: what serves and what the file says are always the same.

It also remembers which adapter each base had in service: adapters of another base stay aside while it
does not serve, and that one is in service again when it does.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from pydantic import TypeAdapter

from appliance.adapters.registry import Registry
from appliance.config import Config
from appliance.errors import ShammahError, Unavailable
from appliance.events import EventBus
from appliance.files import write_atomic
from appliance.home import Home
from appliance.model.bundle import Manifest, load_bundle
from appliance.settings.editor import SettingsEditor
from appliance.settings.file import read
from appliance.store import Store

logger = logging.getLogger(__name__)

ACTOR = "appliance"


@dataclass(frozen=True)
class Fallback:
    """That the box went back to a model.

    Attributes:
        model: the one that failed.
        instead: the one that serves since.
        reason: why, for a person.
        at: when, in Unix time.
    """

    model: str
    instead: str
    reason: str
    at: float


@dataclass(frozen=True)
class Served:
    """The file.

    Attributes:
        good: the model that the box came up with last.
        base: its base hash.
        trial: the model that a start began with and has not come up with yet.
        adapters: by base hash of models that do not serve, the adapter that was in service with them.
        fallback: what the owner has to be told.
    """

    good: str | None = None
    base: str | None = None
    trial: str | None = None
    adapters: Mapping[str, str] = field(default_factory=dict)
    fallback: Fallback | None = None


_SERVED = TypeAdapter(Served)


def read_served(home: Home) -> Served:
    """What is known; nothing, if the file is not there or says nothing of use."""
    try:
        data = json.loads(_path(home).read_text(encoding="utf-8"))
        return _SERVED.validate_python(data)
    except (OSError, ValueError, RecursionError):  # pydantic's error is a ValueError
        return Served()


def begin(home: Home, model: str) -> None:
    """Note that a start with `model` begins.

    Raises:
        Unavailable: the last start with it did not survive, and there is a model to go back to.
    """
    served = read_served(home)
    if model == served.good:
        return
    if served.good is not None and served.trial == model:
        raise Unavailable("The box died while it was starting with it, most likely for want of memory.")
    _write(home, replace(served, trial=model))


def end(home: Home) -> None:
    """Note that a start ended in an orderly way: whatever was wrong, it was not that the box died."""
    served = read_served(home)
    if served.trial is not None:
        _write(home, replace(served, trial=None))


def came_up(home: Home, manifest: Manifest) -> None:
    """Note that the box serves with a model."""
    served = read_served(home)
    fallback = served.fallback
    if fallback is not None and manifest.name == fallback.model:
        fallback = None  # it works after all
    now = replace(served, good=manifest.name, base=manifest.base_hash, trial=None, fallback=fallback)
    if now != served:
        _write(home, now)


def dismiss(home: Home) -> None:
    """The owner has read of the fallback."""
    served = read_served(home)
    if served.fallback is not None:
        _write(home, replace(served, fallback=None))


def fall_back(home: Home, config: Config, error: Exception) -> bool:
    """Go back to the model that works, after a start with another one failed.

    Returns:
        Whether there is one, so that starting again makes sense.
    """
    served, failed = read_served(home), config.model.name
    if served.good is None or served.good == failed:
        return False
    try:
        load_bundle(home.models / served.good)
        _put_back(home, config, served.good)
        reason = error.message if isinstance(error, ShammahError) else f"{type(error).__name__}: {error}"
        fallback = Fallback(failed, served.good, reason, time.time())
        _write(home, replace(served, trial=None, fallback=fallback))
    except (ShammahError, OSError) as problem:
        logger.error("The box cannot go back to %s: %s", served.good, problem)
        return False
    logger.error("%s cannot be served: %s Going back to %s.", failed, reason, served.good)
    return True


def change_base(home: Home, registry: Registry, manifest: Manifest) -> None:
    """At the start: set the adapter of another base aside, and put the one of this base back.

    A kill in the middle loses at most which one it was: the start then takes the newest that fits.
    """
    served = read_served(home)
    if served.base in (None, manifest.base_hash):
        return
    adapters = dict(served.adapters)
    mine = adapters.pop(manifest.base_hash, None)
    current = registry.current()
    if current is not None and served.base is not None:
        adapters[served.base] = current
    _write(home, replace(served, base=manifest.base_hash, adapters=adapters))
    if current != mine:
        logger.info(
            "Another base: %s is set aside, %s is in service again.", current or "nothing", mine or "base"
        )
    try:
        registry.set_current(mine)
    except ShammahError:  # removed meanwhile
        registry.set_current(None)


def _put_back(home: Home, config: Config, model: str) -> None:
    store = Store.open(home)
    try:
        editor = SettingsEditor(home, store, config, EventBus())  # nobody listens yet
        editor.save({"model.name": model}, read(home.config).etag, ACTOR)
    finally:
        store.close()


def _path(home: Home) -> Path:
    return home.root / "served.json"


def _write(home: Home, served: Served) -> None:
    write_atomic(_path(home), json.dumps(asdict(served), indent=1) + "\n")
