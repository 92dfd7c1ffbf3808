"""Reading a gzipped tar of plain files, as a backup is one, and nothing else that may call itself a tar.

`tarfile` does what a file says: it fills a hole of a terabyte with zeros, follows maps of holes without end,
reads names and headers into memory however long they are. An archive may come from anywhere; what no backup
has in it ends the reading before it costs anything.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from appliance.errors import InvalidRequest

BLOCK = 512
HEADER_BYTES = 20_000
"""Of the records before a member that has a long name or is large."""
MOST_RATIO = 1100
"""Deflate makes no more of a byte than this."""
_CHUNK = 1 << 18
_PLAIN, _RECORDS = (b"0", b"\0"), b"x"
_RECORD = re.compile(rb"(\d{1,6}) ([A-Za-z0-9_.]{1,100})=", re.ASCII)
_KNOWN = frozenset({"path", "size", "mtime", "atime", "ctime", "uid", "gid", "uname", "gname", "comment"})


@dataclass(frozen=True)
class Entry:
    """A file in the archive: its name and its size in bytes."""

    name: str
    size: int


class Archive:
    """The members one after the other; the content of each is read, or passed over, before the next."""

    def __init__(self, file: BinaryIO) -> None:
        """Read from an open file."""
        self._file = file
        self._zip = zlib.decompressobj(wbits=31)
        self._left = self._padding = 0

    def next(self) -> Entry | None:
        """The next member; None at the end.

        Raises:
            InvalidRequest: it is not one that a backup has.
        """
        while self.read(_CHUNK):
            pass
        self._take(self._padding)
        records: dict[str, str] = {}
        while (block := self._take(BLOCK)) != bytes(BLOCK):
            _check(block)
            kind, size = block[156:157], _number(block[124:136])
            if kind not in _PLAIN and size > HEADER_BYTES:
                raise InvalidRequest("This is not a backup of Shammah: it has a header that is too large.")
            if kind == _RECORDS and size and not records:
                records = _parse(self._take(size))
                self._take(-size % BLOCK)
                continue
            if kind not in _PLAIN:
                raise InvalidRequest("This is not a backup of Shammah: it has more than plain files in it.")
            name = records.get("path") or "/".join(filter(None, (_text(block[345:500]), _text(block[:100]))))
            if "size" in records:
                size = _number(records["size"].encode(), 10)
            self._left, self._padding = size, -size % BLOCK
            return Entry(name, size)
        return None

    def read(self, size: int) -> bytes:
        """Up to so many bytes of the present member; none when that is at its end."""
        data = self._take(min(size, self._left))
        self._left -= len(data)
        return data

    def _take(self, size: int) -> bytes:
        parts, missing = [], size
        while missing:
            packed = self._zip.unconsumed_tail or self._file.read(_CHUNK)
            if self._zip.eof or not packed:
                raise InvalidRequest("This backup is damaged: it is cut off.")
            data = self._zip.decompress(packed, missing)
            missing -= len(data)
            parts.append(data)
        return b"".join(parts)


@contextmanager
def opened(path: Path) -> Iterator[Archive]:
    """The archive in a file.

    Raises:
        InvalidRequest: it is none, or it is damaged.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        try:
            yield Archive(file)
        except zlib.error as error:
            raise InvalidRequest(f"This is not a backup of Shammah, or it is damaged ({error}).") from error


def _check(block: bytes) -> None:
    told = sum(block[:148]) + 8 * 32 + sum(block[156:])
    if block[257:262] != b"ustar" or _number(block[148:156]) != told:
        raise InvalidRequest("This is not a backup of Shammah, or it is damaged (a header is none).")


def _number(field: bytes, base: int = 8) -> int:
    """Digits and nothing else: no sign, no binary."""
    text = field.strip(b" \0") or b"0"
    if not re.fullmatch(rb"[0-7]{1,12}" if base == 8 else rb"[0-9]{1,15}", text):
        raise InvalidRequest("This is not a backup of Shammah, or it is damaged (a number is none).")
    return int(text, base)


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "replace")


def _parse(data: bytes) -> dict[str, str]:
    """The records of a header; of holes and the like no backup speaks."""
    records, at = {}, 0
    while at < len(data):
        match = _RECORD.match(data, at)
        end = at + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(data) or data[end - 1 : end] != b"\n":
            raise InvalidRequest("This is not a backup of Shammah, or it is damaged (a record is none).")
        key = match[2].decode()
        if key not in _KNOWN:
            raise InvalidRequest(f"This is not a backup of Shammah: {key!r} is in no header of one.")
        records[key] = data[match.end() : end - 1].decode("utf-8", "replace")
        at = end
    return records
