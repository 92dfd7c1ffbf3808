from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.home import Home
from appliance.store import Store
from appliance.store.examples import NewExample


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def store(home: Home) -> Iterator[Store]:
    opened = Store.open(home)
    yield opened
    opened.close()


@pytest.fixture
def new() -> Callable[..., NewExample]:
    def make(query: str = "What is 2+2?", response: str = "4", **fields: object) -> NewExample:
        given = {
            "kind": "automatic",
            "query": query,
            "response": response,
            "target": response,
            "weight": 1.0,
            "messages": [{"role": "user", "content": query}],
        }
        return NewExample(**(given | fields))

    return make


@dataclass
class SmallDisk:
    path: Path

    def fill(self) -> None:
        fd = os.open(self.path / "filler", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        try:
            for size in (65536, 4096, 1):
                while True:
                    try:
                        os.write(fd, bytes(size))
                    except OSError as error:
                        assert error.errno == errno.ENOSPC
                        break
        finally:
            os.close(fd)

    def free(self) -> None:
        (self.path / "filler").unlink()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A real file system of 2 MB that can be filled to the last byte."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.fail(f"tests on a full disk mount a small tmpfs, which needs root: {mounted.stderr.strip()}")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
