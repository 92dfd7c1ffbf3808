"""What is on this home's disk, opened for the length of a command. Safe beside a running daemon."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from appliance.home import Home

if TYPE_CHECKING:
    from appliance.model.bundle import Bundle
    from appliance.store import Store


@contextlib.contextmanager
def open_store() -> Iterator[Store]:
    """The home's store."""
    from appliance.store import Store

    store = Store.open(Home.default())
    try:
        yield store
    finally:
        store.close()


def served_bundle(home: Home) -> Bundle:
    """The bundle that `config.toml` names."""
    from appliance.config import load_config
    from appliance.model.bundle import load_bundle

    return load_bundle(home.models / load_config(home.config).model.name)
