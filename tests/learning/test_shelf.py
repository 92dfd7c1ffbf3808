"""What a trainer puts away on disk."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest

from appliance.learning.train.shelf import Shelf


def test_what_is_put_away_comes_back_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    shelf: Shelf[str] = Shelf()
    whole = np.arange(600, dtype=np.float32).reshape(20, 30)
    shelf.put("part", whole[3:7])
    shelf.put("turned", whole.T)
    assert np.array_equal(shelf["part"], whole[3:7])
    shelf.put("nothing", whole[:0])
    shelf.put("line", whole[0])
    for key, array in {"turned": whole.T, "nothing": whole[:0], "line": whole[0], "part": whole[3:7]}.items():
        found = shelf[key]
        assert np.array_equal(found, array)
        assert found.shape == array.shape
        found += 1  # nobody else's
        assert np.array_equal(shelf[key], array)
    assert list(shelf) == ["part", "turned", "nothing", "line"]
    assert "other" not in shelf
    with pytest.raises(KeyError):
        shelf["other"]
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    full = os.open("/dev/full", os.O_RDWR)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda buffering: os.fdopen(full, "r+b", buffering))
    shelf: Shelf[int] = Shelf()
    with pytest.raises(OSError, match="No space") as caught:
        shelf.put(1, np.ones(10, np.float32))
    assert caught.value.errno == errno.ENOSPC
