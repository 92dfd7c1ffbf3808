"""The log: the newest records first, by level, search and what they are about, and followed live.

The file holds text or JSON, as `[server] log_format` says, and both after that was changed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import urlencode

from sanic import Blueprint, HTTPResponse, Request
from sanic.exceptions import NotFound
from sanic.response import file_stream

from appliance.console.live import told_of_stop
from appliance.console.login import still_admitted
from appliance.console.render import page, render
from appliance.logs import INDENT
from appliance.plain import readable

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
SHOWN = 200
READ_BYTES = 2_000_000
"""So much of the end of the log is looked through: a page costs the same however long the log is."""
RECORD_CHARS = 4_000
FOLLOW_SECONDS = 1.0
PING_SECONDS = 15.0
_HEAD = re.compile(
    r"(?P<at>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(?P<ms>\d{3}) (?P<level>[A-Z]+) (?P<name>[\w.<>-]+)"
    r"(?: request=(?P<request>\S+))?(?: run=(?P<run>\S+))?: ",
    re.ASCII,
)


@dataclass(frozen=True)
class Record:
    """One record of the log.

    Attributes:
        at: Unix time.
        level: "DEBUG" to "CRITICAL".
        name: of the module that wrote it.
        text: with the lines of a traceback, if there is one.
        request: id of the request it is about; empty for none.
        run: id of the run it is about; empty for none.
    """

    at: float
    level: str
    name: str
    text: str
    request: str = ""
    run: str = ""


@dataclass(frozen=True)
class Wanted:
    """Which records to show: those at least this grave, with this text in them, about this request or run."""

    level: str = "INFO"
    search: str = ""
    about: str = ""

    def fits(self, record: Record) -> bool:
        """Whether to show it."""
        grave = logging.getLevelNamesMapping()
        if grave.get(record.level, 0) < grave[self.level]:
            return False
        if self.about and self.about not in (record.request, record.run):
            return False
        needle = self.search.casefold()
        return needle in record.text.casefold() or needle in record.name.casefold()

    def query(self) -> str:
        """As part of an address."""
        return urlencode({"level": self.level, "search": self.search, "about": self.about})


def add_routes(blueprint: Blueprint) -> None:
    """Put `/logs` on the blueprint."""
    blueprint.add_route(show, "/logs", methods=["GET"], name="logs")
    blueprint.add_route(follow, "/logs/follow", methods=["GET"], name="logs_follow")
    blueprint.add_route(download, "/logs/file", methods=["GET"], name="logs_file")


async def show(request: Request) -> HTTPResponse:
    """The newest records that fit."""
    wanted, path = _wanted(request), _path(request)

    def read() -> tuple[list[Record], int]:
        text, end = tail(path, READ_BYTES)
        found = [record for record in records(text) if wanted.fits(record)]
        return found[: -SHOWN - 1 : -1], end

    found, end = await asyncio.to_thread(read)
    return page(
        request,
        "logs.html",
        section="settings",
        records=found,
        wanted=wanted,
        levels=LEVELS,
        end=end,
        shown=SHOWN,
        there=path.exists(),
    )


async def follow(request: Request) -> None:
    """Send new records that fit, as they are written, until the browser leaves or is logged out."""
    wanted, path = _wanted(request), _path(request)
    after = request.headers.get("last-event-id") or request.args.get("after", "")
    place = int(after) if after.isascii() and after.isdigit() and len(after) < 19 else None
    response = await request.respond(content_type="text/event-stream; charset=utf-8")
    await response.send(": connected\n\n")

    def read(place: int | None) -> tuple[str, int]:
        text, place = since(path, place)
        new = [record for record in records(text) if wanted.fits(record)][-SHOWN:]
        return (render("parts/records.html", records=new[::-1]) if new else ""), place

    quiet = 0.0
    with told_of_stop(request.app.ctx.events) as stopping:
        while not stopping.is_set() and await still_admitted(request):
            body, place = await asyncio.to_thread(read, place)
            if body:
                lines = "".join(f"data: {line}\n" for line in body.splitlines())
                await response.send(f"id: {place}\n{lines}\n")
                quiet = 0.0
            elif quiet >= PING_SECONDS:  # else a browser that is gone would never be noticed
                await response.send(": still here\n\n")
                quiet = 0.0
            with suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), FOLLOW_SECONDS)
            quiet += FOLLOW_SECONDS


async def download(request: Request) -> HTTPResponse:
    """The log file as it is."""
    path = _path(request)
    if not path.is_file():
        raise NotFound("There is no log yet.")
    response: HTTPResponse = await file_stream(  # type: ignore[assignment]
        path, mime_type="text/plain; charset=utf-8", filename="shammah.log"
    )
    return response


def tail(path: Path, size: int) -> tuple[str, int]:
    """The last whole lines of a file within `size` bytes, and where it ends; nothing when it is not there."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            start = max(0, end - size)
            file.seek(start)
            data = file.read(end - start)
    except FileNotFoundError:
        return "", 0
    if start:
        data = data[data.find(b"\n") + 1 :]
    whole = data.rfind(b"\n") + 1
    return data[:whole].decode(errors="replace"), end - (len(data) - whole)


def since(path: Path, place: int | None) -> tuple[str, int]:
    """Whole lines written after `place`, and where to go on. A file that got shorter was begun anew."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            if place is None:
                return "", end
            if end < place:
                place = 0
            place = max(place, end - READ_BYTES)
            file.seek(place)
            data = file.read(end - place)
    except FileNotFoundError:
        return "", 0
    whole = data.rfind(b"\n") + 1
    return data[:whole].decode(errors="replace"), place + whole


def records(text: str) -> Iterator[Record]:
    """The records of a piece of log, oldest first. Lines without a head belong to the record before."""
    head: re.Match[str] | None = None
    lines: list[str] = []
    for line in text.split("\n"):  # `splitlines` would end some where the log does not
        found = _HEAD.match(line)
        parsed = _parse(line) if found is None and line.startswith("{") else None
        if found is None and parsed is None:
            lines.append(line.removeprefix(INDENT))
            continue
        if head is not None:
            yield _record(head, lines)
        if parsed is not None:
            yield parsed
        head, lines = found, [line[found.end() :]] if found else []
    if head is not None:
        yield _record(head, lines)


def _record(head: re.Match[str], lines: list[str]) -> Record:
    at = 0.0
    with suppress(ValueError, OverflowError):
        at = datetime.strptime(head["at"], "%Y-%m-%d %H:%M:%S").timestamp() + int(head["ms"]) / 1000
    text = "\n".join(lines).rstrip("\n")[:RECORD_CHARS]
    return Record(at, head["level"], head["name"], text, head["request"] or "", head["run"] or "")


def _parse(line: str) -> Record | None:
    """A record of the JSON format; None when it is something else."""
    try:
        entry = json.loads(line)
        at = datetime.fromisoformat(entry["time"]).timestamp()
        level, name, message = str(entry["level"]), str(entry["logger"]), str(entry["message"])
    except (ValueError, RecursionError, OverflowError, KeyError, TypeError):
        return None
    parts = [message, *(str(entry[part]) for part in ("exception", "stack") if part in entry)]
    text = readable("\n".join(parts))[:RECORD_CHARS]
    return Record(at, level, name, text, str(entry.get("request", "")), str(entry.get("run", "")))


def _wanted(request: Request) -> Wanted:
    level, about = request.args.get("level", "INFO"), request.args.get("about", "").strip()
    search = request.args.get("search", "").strip()[:200]
    return Wanted(level if level in LEVELS else "INFO", search, about[:200])


def _path(request: Request) -> Path:
    path: Path = request.app.ctx.home.logs / "shammah.log"
    return path
