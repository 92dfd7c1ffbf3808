"""A home with the real model, and the whole examination of it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from daemons import free_port, install_bundle

from appliance.doctor.box import Standing, looked_at
from appliance.doctor.examine import Report, examine
from appliance.doctor.finding import Finding
from appliance.home import Home
from appliance.model.bundle import Bundle
from appliance.store import Store
from appliance.store.examples import NewExample

Look = Callable[..., list[Finding]]


@pytest.fixture
def home(tmp_path: Path, bundle: Bundle) -> Home:
    """With the model, an empty store, and an address that is free."""
    home = Home(tmp_path / "home").ensure()
    install_bundle(home, bundle)
    Store.open(home).close()
    home.config.write_text(f'[server]\nbind = "127.0.0.1:{free_port()}"\n')
    return home


@pytest.fixture
def report(home: Home) -> Callable[..., Report]:
    """`report(quick=True, standing=None)`: an examination as it is."""

    def examined(*, quick: bool = True, standing: Standing | None = None) -> Report:
        with looked_at(home, standing, quick=quick) as box:
            return examine(box)

    return examined


@pytest.fixture
def look(report: Callable[..., Report]) -> Look:
    """`look("disk")`: what one check finds, the gravest first."""

    def looked(check: str, **options: object) -> list[Finding]:
        order = ("error", "warning", "note", "ok")
        return sorted(report(**options).of(check), key=lambda finding: order.index(finding.level))

    return looked


@contextmanager
def opened(home: Home) -> Iterator[Store]:
    store = Store.open(home)
    try:
        yield store
    finally:
        store.close()


def example(query: str = "What is 2+2?", **fields: object) -> NewExample:
    given = {"kind": "automatic", "response": "4", "target": "4", "weight": 1.0, "messages": []}
    return NewExample(query=query, **(given | fields))


@pytest.fixture
def standing() -> Iterator[Standing]:
    """As a healthy daemon says it: of this process, with a port that can be reached."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        now = time.time()
        yield Standing(
            pid=os.getpid(),
            host="127.0.0.1",
            port=server.getsockname()[1],
            started=now,
            booted=time.clock_gettime(time.CLOCK_BOOTTIME),
            healthy=True,
            ready=True,
        )
