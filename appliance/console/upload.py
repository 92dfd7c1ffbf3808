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
from typing import Any, BinaryIO

from sanic import Request
from sanic.headers import parse_content_header

from appliance.errors import InvalidRequest
from appliance.files import storage_errors

PREFIX = ".upload-"
LEFTOVER_SECONDS = 6 * 3600.0
"""A directory of an upload that is older was left behind by a crash."""
_HEAD_LIMIT = 8192
_WRITE_BYTES = 1 << 18


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
    source = _Source(request, b"\r\n--" + boundary.encode())
    await source.skip_to_boundary()
    while (head := await source.head()) is not None:
        given = _file_name(head)
        if not given:
            await source.skip_to_boundary()
            continue
        path = directory / name(given)
        with path.open("wb") as file:
            await _store(source, file, limit, given)
        async for _ in request.stream:  # type: ignore[union-attr]
            pass
        return path
    raise InvalidRequest("Choose a file first.")


async def _store(source: _Source, file: BinaryIO, limit: int, given: str) -> None:
    size, waiting = 0, bytearray()

    def write() -> None:
        with storage_errors(given):
            file.write(waiting)

    async for piece in source.part():
        size += len(piece)
        if size > limit:
            raise InvalidRequest(f"{given} is larger than {limit // 1_000_000} MB.")
        waiting += piece
        if len(waiting) >= _WRITE_BYTES:
            await asyncio.to_thread(write)
            waiting.clear()
    await asyncio.to_thread(write)


class _Source:
    """A multipart body, read from beginning to end."""

    def __init__(self, request: Request, boundary: bytes) -> None:
        assert request.stream is not None
        self._stream: Any = request.stream
        self._boundary = boundary
        self._buffer = bytearray(b"\r\n")  # before the first boundary there need not be one

    async def _more(self) -> None:
        data = await self._stream.read() if self._stream.request_body else None
        if not data:
            raise InvalidRequest("The file was cut off on its way. Try again.")
        self._buffer += data

    async def skip_to_boundary(self) -> None:
        """Go to right behind the next boundary."""
        async for _ in self.part():
            pass

    async def head(self) -> str | None:
        """The headers of the part that begins here; None behind the last."""
        while len(self._buffer) < 2:
            await self._more()
        if self._buffer.startswith(b"--"):
            return None
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > _HEAD_LIMIT:
                raise InvalidRequest("This is not a form with a file.")
            await self._more()
        head = self._buffer[2:end].decode(errors="replace")
        del self._buffer[: end + 4]
        return head

    async def part(self) -> AsyncIterator[bytes]:
        """What comes until the next boundary, which is read too."""
        keep = len(self._boundary) - 1
        while (end := self._buffer.find(self._boundary)) < 0:
            if len(self._buffer) > keep:
                piece = bytes(self._buffer[:-keep])
                del self._buffer[:-keep]
                yield piece
            await self._more()
        piece = bytes(self._buffer[:end])
        del self._buffer[: end + len(self._boundary)]
        yield piece


def _file_name(head: str) -> str:
    """What a part's file is called; empty when it is no file, or none was chosen."""
    for line in head.split("\r\n"):
        key, _, value = line.partition(":")
        if key.strip().lower() == "content-disposition":
            return str(parse_content_header(value.strip())[1].get("filename", ""))
    return ""


def _directory(near: Path) -> Path:
    for old in near.glob(f"{PREFIX}*"):
        with suppress(FileNotFoundError):
            if old.stat().st_mtime < time.time() - LEFTOVER_SECONDS:
                shutil.rmtree(old, ignore_errors=True)
    with storage_errors("the upload"):
        return Path(tempfile.mkdtemp(prefix=PREFIX, dir=near))
