from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.config import Config
from appliance.events import EventBus
from appliance.home import Home
from appliance.settings.editor import SettingsEditor
from appliance.store import Store


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home").ensure()


@pytest.fixture
def store(home: Home) -> Iterator[Store]:
    opened = Store.open(home)
    yield opened
    opened.close()


@pytest.fixture
def editor(home: Home, store: Store) -> SettingsEditor:
    """Of a daemon that was started with the defaults."""
    return SettingsEditor(home, store, Config(), EventBus())
