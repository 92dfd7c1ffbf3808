"""Taking in an adapter file that a person gives: looked at first, so that an unfit one leaves nothing behind.

It is known to the store as a candidate from the moment it is in the directory; the watcher then has the
gate judge it like any other.
"""

from __future__ import annotations

import re
import time
import unicodedata
from dataclasses import replace
from pathlib import Path

from appliance.adapters.file import SUFFIX, read_adapter
from appliance.adapters.registry import Registry, valid_name
from appliance.errors import Conflict
from appliance.model.bundle import Manifest
from appliance.store import Store
from appliance.store.adapters import AdapterRow

NAME_LENGTH = 100
_UNFIT = re.compile(r"[^A-Za-z0-9._-]+")


def take_in(store: Store, registry: Registry, manifest: Manifest, file: Path, actor: str) -> str:
    """Move a file among the adapters, as a candidate.

    Args:
        store: where it gets known.
        registry: where it goes.
        manifest: of the bundle it has to fit.
        file: its name is what the adapter is called, if that can be had.
        actor: who gives it.

    Returns:
        What it is called.

    Raises:
        AdapterInvalid: it is damaged, or made for something else.
        Conflict: it is there already, or it learned from what has been forgotten.
        StorageFull: there is no room for it.
    """
    adapter = read_adapter(file, manifest)
    if store.adapters.barred(adapter.sha256):
        raise Conflict(f"{adapter.name} learned from what has been forgotten: it cannot serve again.")
    there, earlier = set(registry.list()), store.adapters.of_content(adapter.sha256)
    for known in earlier:
        if known.name in there:
            raise Conflict(f"This adapter is here already: it is {known.name}.")
    meta = adapter.meta
    if earlier:  # it was deleted, and comes back as what it was
        row = replace(earlier[0], state="candidate", report=None)
    else:
        name = _free_name(store, registry, adapter.name)
        base, size = meta.base_hash, adapter.size
        row = AdapterRow(
            name, time.time(), adapter.sha256, size, base, meta.rank, None, meta.parent, "candidate", None
        )
    with store.transaction():
        store.adapters.upsert(row)
        store.audit.add(actor, "adapter.upload", {"adapter": row.name, "sha256": adapter.sha256})
        registry.add(file, row.name)
    return row.name


def fit_name(given: str) -> str:
    """A name for an adapter out of whatever a file was called, maybe on another system."""
    stem = re.split(r"[/\\]", given)[-1].removesuffix(SUFFIX)
    plain = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode()
    name = _UNFIT.sub("-", plain).strip("-._")[:NAME_LENGTH]
    return name if valid_name(name) else "uploaded"


def _free_name(store: Store, registry: Registry, wanted: str) -> str:
    """The name, or that with a number: no file has it, and none that is gone had it."""
    name, number = wanted, 1
    taken = set(registry.list())
    while name in taken or store.adapters.get(name) is not None:
        number += 1
        name = f"{wanted}-{number}"
    return name
