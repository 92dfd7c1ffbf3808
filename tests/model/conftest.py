from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import make_checkpoint

from appliance.home import Home
from appliance.model.bundle import Bundle
from appliance.model.importer import import_model


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "Tiny Llama")


@pytest.fixture(scope="session")
def tiny(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return import_model(str(checkpoint), Home(tmp_path_factory.mktemp("tiny-home")))


@pytest.fixture
def copies(tmp_path: Path) -> Callable[[Path], Path]:
    """Copies of directories, to be damaged."""

    def copy(path: Path) -> Path:
        return Path(shutil.copytree(path, tmp_path / "copy"))

    return copy
