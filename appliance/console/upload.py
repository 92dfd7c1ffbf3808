"""Receiving a file from a form: to disk as it arrives, so that a large one needs no memory.

Sanic reads other forms whole, and none larger than `[server] max_body_mb`. A body is always read to its
end: a browser that is still sending does not look at an answer.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from multipart import MultipartError, MultipartSegment, PushMultipartParser
from sanic import Request
from sanic.headers import parse_content_header

from appliance.errors import InvalidRequest, StorageFull
from appliance.files import storage_errors

PREFIX = ".upload-"
LEFTOVER_SECONDS = 6 * 3600.0
"""A directory of an upload that is older was left behind by a crash."""
SPARE_BYTES = 50_000_000
"""Kept free on the disk: what devices say meanwhile has to be written down."""
_WRITE_BYTES = 1 << 18
MAX_PARTS = 100
"""Of such a form: a file, and what else is chosen with it."""


@asynccontextmanager
async def received_file(
    request: Request, near: Path, limit: int, name: Callable[[str], str]
) -> AsyncIterator[Path]:
    """The file of a multipart form, on disk until the end of the block, if it is still there then.

    Args:
        request: of a route with `stream=True`.
        near: a directory on the file system where the file is wanted.
        limit: bytes it has at most.
        name: gives the name of the file on disk, from what the browser calls it.

    Raises:
        InvalidRequest: there is no file in the form, it is cut off, or it is too large.
        StorageFull: there is no room for it.
    """
    directory = await asyncio.to_thread(_directory, near)
    try:
        try:
            path = await _receive(request, directory, limit, name)
        except Exception:
            async for _ in request.stream:  # type: ignore[union-attr]
                pass
            raise
        yield path
    finally:
        await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)


async def _receive(request: Request, directory: Path, limit: int, name: Callable[[str], str]) -> Path:
    kind, parameters = parse_content_header(request.headers.get("content-type", ""))
    boundary = str(parameters.get("boundary", ""))
    if kind != "multipart/form-data" or not boundary:
        raise InvalidRequest("This is not a form with a file.")
    assert request.stream is not None
    file: _File | None = None
    try:
        with PushMultipartParser(boundary, max_segment_count=MAX_PARTS) as parser:
            async for chunk in request.stream:  # type: ignore[attr-defined]
                for piece in parser.parse(chunk):
                    if isinstance(piece, MultipartSegment):
                        # Only the first file counts; a field without a name is a choice not made.
                        if file is None and piece.filename:
                            file = _File(directory / name(piece.filename), piece.filename, limit)
                    elif piece is None:
                        if file is not None:
                            file.complete = True
                    elif file is not None and not file.complete:
                        await file.add(piece)
    except MultipartError as error:
        raise InvalidRequest("The file was cut off on its way. Try again.") from error
    if file is None:
        raise InvalidRequest("Choose a file first.")
    await file.flush()
    return file.path


class _File:
    """A file that comes in pieces, written in larger ones."""

    def __init__(self, path: Path, given: str, limit: int) -> None:
        self.path = path
        self.complete = False
        self._given, self._limit = given, limit
        self._size, self._waiting = 0, bytearray()

    async def add(self, piece: bytes | bytearray) -> None:
        """Take the next piece.

        Raises:
            InvalidRequest: it is too much.
            StorageFull: there is no room for it.
        """
        self._size += len(piece)
        if self._size > self._limit:
            raise InvalidRequest(f"{self._given} is larger than {self._limit // 1_000_000} MB.")
        self._waiting += piece
        if len(self._waiting) >= _WRITE_BYTES:
            await self.flush()

    async def flush(self) -> None:
        """Write what waits.

        Raises:
            StorageFull: there is no room for it.
        """

        def write() -> None:
            if shutil.disk_usage(self.path.parent).free < SPARE_BYTES + len(self._waiting):
                raise StorageFull(f"The disk is too full for {self._given}. Free space and try again.")
            with storage_errors(self._given), self.path.open("ab") as file:
                file.write(self._waiting)

        await asyncio.to_thread(write)
        self._waiting.clear()


def _directory(near: Path) -> Path:
    for old in near.glob(f"{PREFIX}*"):
        with suppress(FileNotFoundError):
            if old.stat().st_mtime < time.time() - LEFTOVER_SECONDS:
                shutil.rmtree(old, ignore_errors=True)
    with storage_errors("the upload"):
        return Path(tempfile.mkdtemp(prefix=PREFIX, dir=near))
