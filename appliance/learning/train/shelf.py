"""Arrays put away on disk, so that what a trainer holds in memory does not grow with its batch."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Hashable, Iterator, Mapping
from typing import TypeVar

import numpy as np

from appliance.adapters.file import Matrix

Key = TypeVar("Key", bound=Hashable)


class Shelf(Mapping[Key, Matrix]):
    """Arrays by key. They are in a file without a name: it is gone with the process, however that ends.

    The file is made in Python's directory for temporary files, which had better not be memory.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - it lives as long as the shelf
        self._places: dict[Key, tuple[int, tuple[int, ...]]] = {}
        self._end = 0

    def put(self, key: Key, array: Matrix) -> None:
        """Put one away.

        Raises:
            OSError: the disk is full.
        """
        data = np.ascontiguousarray(array, np.float32)
        left = data.tobytes()
        start = self._end
        while left:
            written = os.pwrite(self._file.fileno(), left, self._end)
            self._end += written
            left = left[written:]
        self._places[key] = (start, data.shape)

    def __getitem__(self, key: Key) -> Matrix:
        start, shape = self._places[key]
        out = np.empty(shape, np.float32)
        read = os.preadv(self._file.fileno(), [out.data.cast("B")], start) if out.size else 0
        if read != out.nbytes:
            raise OSError(f"Only {read} of {out.nbytes} bytes could be read back.")
        return out

    def __del__(self) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[Key]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
