"""`config.toml` as a whole: read, unknown keys refused, taken over live. Its tables: `sections.py`."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from appliance.errors import ConfigError
from appliance.files import write_atomic
from appliance.sections import (
    BackupConfig,
    CollectConfig,
    ConsoleConfig,
    GateConfig,
    LoraConfig,
    MdnsConfig,
    ModelConfig,
    ResourcesConfig,
    Section,
    ServerConfig,
    StorageConfig,
    Taken,
    TlsConfig,
    TrainConfig,
)

_WHOLE, _NUMBER = "This must be a whole number.", "This must be a number."
_FLAG = "This must be true or false."
_BOUNDS = ("greater_than_equal", "less_than_equal", "none_or_least")
_MEANINGS = {
    "int_parsing": _WHOLE,
    "int_type": _WHOLE,
    "int_from_float": _WHOLE,
    "int_parsing_size": _WHOLE,
    "float_parsing": _NUMBER,
    "float_type": _NUMBER,
    "finite_number": _NUMBER,
    "bool_parsing": _FLAG,
    "bool_type": _FLAG,
    "greater_than_equal": "This must be at least {ge:,.12g}.",
    "greater_than": "This must be more than {gt:,.12g}.",
    "less_than_equal": "This must be at most {le:,.12g}.",
    "less_than": "This must be less than {lt:,.12g}.",
    "literal_error": "This must be {expected}.",
    "string_type": "This must be a text.",
    "model_type": "This must be a table.",
    "model_attributes_type": "This must be a table.",
    "dict_type": "This must be a table.",
    "missing": "This is missing.",
}
"""What pydantic's types of errors mean to a person who looks at the value."""


class Config(Section):
    """The whole file.

    Every part of the daemon holds the same one and looks its values up as `config.section.key`. A section
    never changes, but `adopt` may put another in its place; so a part that keeps a section keeps its values.
    """

    server: ServerConfig = ServerConfig()
    tls: TlsConfig = TlsConfig()
    mdns: MdnsConfig = MdnsConfig()
    model: ModelConfig = ModelConfig()
    lora: LoraConfig = LoraConfig()
    train: TrainConfig = TrainConfig()
    resources: ResourcesConfig = ResourcesConfig()
    gate: GateConfig = GateConfig()
    collect: CollectConfig = CollectConfig()
    backup: BackupConfig = BackupConfig()
    storage: StorageConfig = StorageConfig()
    console: ConsoleConfig = ConsoleConfig()

    def adopt(self, new: Config) -> None:
        """Take over what a running daemon can: the keys that are looked up at their use.

        The others keep the values that the parts were built with. A thread that looks up one key sees its
        old or its new value; one that needs several of a section to belong together takes the section first.
        """
        for name in type(self).model_fields:
            running: Section = getattr(self, name)
            kept = {key: getattr(running, key) for key in type(running).taken(Taken.AT_START)}
            section = getattr(new, name).model_copy(update=kept)
            # Which keys were given counts as well: what was not may come from the model.
            if section != running or section.model_fields_set != running.model_fields_set:
                object.__setattr__(self, name, section)  # frozen for all others


def decode(data: bytes) -> str:
    """The text of a config file, as an editor on any system may have saved it.

    Raises:
        ConfigError: it is not UTF-8.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data[:1000]:
        raise ConfigError("config.toml is saved as UTF-16: save it as UTF-8.")
    try:
        return data.decode("utf-8-sig")  # Windows puts a mark before the first line
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"config.toml line {line}: not valid UTF-8 ({error.reason}): save it as UTF-8."
        ) from error


def parse_config(text: str) -> Config:
    """Read the text of a config file.

    Raises:
        ConfigError: with every problem in its message, each naming the key.
    """
    text = text.removeprefix("\ufeff")
    try:
        data = tomllib.loads(text)
    # Some of its errors are plain: on numbers of thousands of digits, on lists nested as deep.
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"config.toml is not valid TOML: {error}") from error
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        found = [(_line(text, item["loc"]), _explain(item), item["loc"]) for item in error.errors()]
        found.sort(key=lambda problem: problem[0])
        problems = [f"config.toml line {line}: {explained}" for line, explained, _ in found]
        raise ConfigError(*problems, param=".".join(str(part) for part in found[0][2])) from error


def load_config(path: Path) -> Config:
    """Read `path`; a missing file means all defaults."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Config()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    return parse_config(decode(data))


@dataclass(frozen=True)
class Loaded:
    """What a daemon starts with.

    Attributes:
        config: the settings.
        problems: what is wrong with `config.toml`, if these are not those of that file.
        instead: where they are from then, in words.
    """

    config: Config
    problems: tuple[str, ...] = ()
    instead: str = ""


def load_to_serve(path: Path, good: Path) -> Loaded:
    """The settings to serve with: a mistake in the file must not keep the box from coming up.

    A number that is out of bounds is taken as the nearest that is not: the file may be of a release that
    knew no such bounds, and everything else in it holds.

    Args:
        path: `config.toml`.
        good: a copy of it as it was when the daemon came up last.
    """
    try:
        return Loaded(load_config(path))
    except ConfigError as error:
        problems = error.problems
    with suppress(OSError, ValueError, ConfigError):
        config = _within_bounds(tomllib.loads(path.read_text(encoding="utf-8")))
        return Loaded(config, problems, "the nearest values that are allowed")
    with suppress(ConfigError):
        if good.exists():
            return Loaded(load_config(good), problems, "the settings that the box came up with last")
    return Loaded(Config(), problems, "the defaults")


def _within_bounds(data: dict[str, Any]) -> Config:
    """The settings of a file with its numbers moved inside their bounds.

    Raises:
        ValidationError: something else is wrong with it.
    """
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        for item in error.errors():
            section, key = (str(part) for part in item["loc"][:2])
            if item["type"] not in _BOUNDS or len(item["loc"]) != 2:
                raise
            context = item.get("ctx") or {}
            data[section][key] = next(context[bound] for bound in ("ge", "le", "least") if bound in context)
    return Config.model_validate(data)


def keep_good(path: Path, good: Path) -> None:
    """Remember the file as one that the daemon came up with, if it means anything.

    Raises:
        ShammahError: the disk does not take it.
    """
    try:
        data = path.read_bytes()
        parse_config(decode(data))
    except (OSError, ConfigError):
        return
    if not good.is_file() or good.read_bytes() != data:
        write_atomic(good, data)


def _line(text: str, loc: tuple[int | str, ...]) -> int:
    """The line of a key, as far as a reader without a grammar can tell; else that of its table, else 1."""
    table, place = "", 1
    wanted = ".".join(str(part) for part in loc)
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[+\s*([\w.\"' -]+?)\s*\]", line):
            table = re.sub(r"[\"' ]", "", header[1])
            if wanted == table or wanted.startswith(f"{table}."):
                place = number
        elif key := re.match(r"\s*([\w.\"' -]+?)\s*=", line):
            full = re.sub(r"[\"' ]", "", f"{table}.{key[1]}" if table else key[1])
            if wanted == full or wanted.startswith(f"{full}."):
                return number
    return place


def _explain(item: Any) -> str:
    loc = [str(part) for part in item["loc"]]
    key = ".".join(loc)
    if item["type"] == "extra_forbidden":
        return f"{key}: {unknown_key(loc)}"
    told = meaning(item)
    return f"{key}: {told[:1].lower()}{told[1:].removesuffix('.')} (got {item['input']!r})"


def meaning(item: Any) -> str:
    """What one of pydantic's errors about a value means to a person who looks at it."""
    kind, context = item["type"], item.get("ctx") or {}
    if kind in _MEANINGS:
        return _MEANINGS[kind].format(**context)
    if kind == "string_pattern_mismatch" and (example := _example(item["loc"])):
        return f"This must look like {example}."
    if "url" not in item:  # one of the models' own, worded for people; pydantic's have a page
        return f"{item['msg']}."
    if kind == "value_error":
        told = str(item["msg"]).removeprefix("Value error, ")
        return f"{told[:1].upper()}{told[1:]}."
    return "This value is not allowed here."


def _example(loc: Sequence[str | int]) -> str | None:
    section = Config.model_fields.get(str(loc[0]))
    fields: Any = getattr(section.annotation, "model_fields", {}) if section else {}
    field = fields.get(str(loc[1])) if len(loc) > 1 else None
    return str(field.examples[0]) if field is not None and field.examples else None


def unknown_key(loc: Sequence[str]) -> str:
    """That there is no such key, and which may have been meant."""
    known: list[str] = list(Config.model_fields)
    if len(loc) == 2:
        known = list(type(getattr(Config(), loc[0])).model_fields)
    near = difflib.get_close_matches(loc[-1], known, n=1)
    hint = f"did you mean `{near[0]}`?" if near else f"known keys here: {', '.join(known)}."
    return f"unknown key; {hint}"
