"""`config.toml` as the owner wrote it: read whatever its state, and changed without touching the rest.

The standard library reads TOML but cannot write it. tomlkit keeps comments, order, quoting and blank
lines; it is what Poetry edits its users' files with.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import Comment, Table, Trivia

from appliance.config import Config, decode, parse_config
from appliance.errors import ConfigError, Conflict, Unavailable
from appliance.files import write_atomic
from appliance.settings.form import keys, values

ABSENT = "absent"


@dataclass(frozen=True)
class OnDisk:
    """The file at one moment.

    Attributes:
        text: for people; what is no text is shown as well as can be.
        etag: changes with every byte of it.
        config: what it means; None when it is broken.
        problems: what is wrong with it, each with its line.
        raw: its tables as they are written; None when they cannot be read at all.
        data: its bytes; None when there is no file, or it cannot be read.
    """

    text: str
    etag: str
    config: Config | None = None
    problems: tuple[str, ...] = ()
    raw: dict[str, Any] | None = field(default=None, repr=False)
    data: bytes | None = field(default=None, repr=False)


def read(path: Path) -> OnDisk:
    """Look at the file. It never raises: what is wrong with it is part of the answer."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return OnDisk("", ABSENT, Config(), raw={})
    except OSError as error:
        return OnDisk("", f"unreadable-{error.errno}", problems=(f"{path} cannot be read: {error.strerror}",))
    etag = hashlib.sha256(data).hexdigest()
    try:
        text = decode(data)
    except ConfigError as error:
        wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        shown = data.decode("utf-16" if wide else "utf-8", errors="replace")
        return OnDisk(shown, etag, problems=error.problems, data=data)
    try:
        return OnDisk(text, etag, parse_config(text), raw=tomllib.loads(text), data=data)
    except ConfigError as error:
        return OnDisk(text, etag, problems=error.problems, raw=_raw(text), data=data)


def edit(text: str, changes: Mapping[str, Any], wanted: Config) -> str:
    """The text with some keys set, or (None) removed; all else stays, comments of removed keys too.

    Args:
        changes: values by key.
        wanted: what the outcome must mean, so that no oddity of a file leads to something else.

    Raises:
        Conflict: the file is written in a way that this cannot be done to.
    """
    windows = newline(text) == "\r\n"
    try:
        document = tomlkit.parse(text if not text or text.endswith("\n") else f"{text}\n")
        for name, value in changes.items():
            section, _, title = name.partition(".")
            if value is None:
                _remove(document, section, title)
            else:
                _set(document, section, title, value)
        changed = tomlkit.dumps(document)
        if windows:
            changed = changed.replace("\r\n", "\n").replace("\n", "\r\n")
        good = parse_config(changed) == wanted
    except (TOMLKitError, ConfigError, KeyError, ValueError, TypeError, AttributeError):
        good = False
    if not good:
        raise Conflict(
            "config.toml is written in a way that keeps this change from being made here: edit the file.",
            param=next(iter(changes), None),
        )
    return changed


def render(config: Config) -> str:
    """A file that means `config` and says only what differs from the defaults."""
    changed = {key: value for key, value in values(config).items() if value != keys()[key].default}
    return edit("", changed, config)


def newline(text: str) -> str:
    """How its lines end: all as on Windows, or the usual way."""
    return "\r\n" if "\r\n" in text and "\n" not in text.replace("\r\n", "") else "\n"


def write(path: Path, content: str | bytes) -> None:
    """Replace the file durably, where it really is, with the mode it has.

    Raises:
        StorageFull: the disk is full; the file is untouched.
        Unavailable: it cannot be replaced.
    """
    place = path.resolve()
    try:
        mode = place.stat().st_mode & 0o777 if place.is_file() else 0o600
        write_atomic(place, content, mode=mode)
    except OSError as error:
        raise Unavailable(f"{place} cannot be written: {error.strerror or error}.") from error


def _raw(text: str) -> dict[str, Any] | None:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError):
        return None


def _set(document: tomlkit.TOMLDocument, section: str, title: str, value: Any) -> None:
    if section not in document:
        document.add(section, tomlkit.table())
    table: Any = document[section]
    if title in table or not isinstance(table, Table) or table.is_super_table():
        table[title] = value
        return
    # After the last key: what follows it is blank, or a comment that heads the next table.
    body = table.value.body
    last = max((place for place, (key, _) in enumerate(body) if key is not None), default=-1)
    tail = body[last + 1 :]
    del body[last + 1 :]
    table.append(title, value)
    body.extend(tail)


def _remove(document: tomlkit.TOMLDocument, section: str, title: str) -> None:
    if not title:
        document.pop(section, None)
        return
    table: Any = document.get(section)
    if table is None or title not in table:
        return
    # Dotted keys (`lora.enabled = true`) make several parts of a section, each with its place in the file.
    parts = [item for key, item in document.body if key is not None and key.key == section]
    part = next((item for item in parts if isinstance(item, Table) and title in item), None)
    if part is None:
        del table[title]
        return
    body = part.value.body
    place = next(place for place, (key, _) in enumerate(body) if key is not None and key.key == title)
    removed: Any = part.value.item(title)
    trivia = removed.trivia
    part.remove(title)
    if trivia.comment:
        body[place] = (None, Comment(Trivia(trivia.indent, "", trivia.comment, trivia.trail)))
    if len(parts) == 1 and not part.trivia.comment and not part.as_string().strip():
        document.remove(section)
