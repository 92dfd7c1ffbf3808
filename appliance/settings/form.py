"""Every key of `config.toml` as a field of a form, made from the models in `appliance/sections.py`."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from appliance.config import Config
from appliance.sections import NoneOr, Taken
from appliance.store.changes import Difference

Kind = Literal["whole", "number", "text", "choice", "flag", "list"]
"""The kind of input: a whole number, any number, one line, one of several, yes or no, one item a line."""

_KINDS: dict[Any, Kind] = {bool: "flag", int: "whole", float: "number", str: "text"}


@dataclass(frozen=True)
class Key:
    """One key.

    Attributes:
        name: as in messages and changes, `section.key`.
        about: what it does, for a person.
        least: the smallest number allowed; `above` when that itself is not.
        none_or: the smallest number besides 0, where 0 has a meaning of its own.
        most: the largest number allowed; `below` when that itself is not.
        pattern: what a text must match, in whole.
        example: a value as it may be, where the kind alone does not tell.
        taken: when the daemon takes its value.
    """

    name: str
    kind: Kind
    default: Any
    about: str
    taken: Taken
    least: float | None = None
    above: bool = False
    none_or: float | None = None
    most: float | None = None
    below: bool = False
    choices: tuple[str, ...] = ()
    pattern: str | None = None
    example: str | None = None

    @property
    def section(self) -> str:
        return self.name.partition(".")[0]

    @property
    def title(self) -> str:
        """The name without its section."""
        return self.name.partition(".")[2]

    @property
    def restart(self) -> bool:
        """Whether a change counts only from the next start."""
        return self.taken is Taken.AT_START


@dataclass(frozen=True)
class Group:
    """A section and its keys, in the order of the reference."""

    name: str
    about: str
    keys: tuple[Key, ...]


@functools.cache
def groups() -> tuple[Group, ...]:
    """All that can be set."""
    found = []
    for name, field in Config.model_fields.items():
        section: Any = field.annotation
        about = (section.__doc__ or "").partition(": ")[2]
        keys = tuple(_key(f"{name}.{key}", item) for key, item in section.model_fields.items())
        found.append(Group(name, f"{about[:1].upper()}{about[1:]}", keys))
    return tuple(found)


@functools.cache
def keys() -> dict[str, Key]:
    """The same by name, without the sections."""
    return {key.name: key for group in groups() for key in group.keys}


def values(config: Config) -> dict[str, Any]:
    """The value of every key."""
    return {
        f"{section}.{key}": value
        for section, table in config.model_dump(mode="json").items()
        for key, value in table.items()
    }


def differences(old: Config, new: Config) -> tuple[Difference, ...]:
    """What is not the same in both."""
    before, after = values(old), values(new)
    return tuple(Difference(key, before[key], after[key]) for key in before if before[key] != after[key])


def restart_needed(running: Config, on_disk: Config) -> tuple[Key, ...]:
    """The keys whose values in the file a daemon that runs with `running` takes only when started again."""
    return tuple(key for key in _changed(running, on_disk) if key.restart)


def reload_needed(running: Config, on_disk: Config) -> tuple[Key, ...]:
    """The keys whose values in the file it would take at once, were it told to: somebody edited the file."""
    return tuple(key for key in _changed(running, on_disk) if not key.restart)


def _changed(running: Config, on_disk: Config) -> tuple[Key, ...]:
    return tuple(keys()[difference.key] for difference in differences(running, on_disk))


def as_text(value: Any) -> str:
    """A value as it stands in a form, and can be sent back."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return "\n".join(as_text(item) for item in value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value)


def _key(name: str, field: FieldInfo) -> Key:
    annotation: Any = field.annotation
    limits = {mark: _limit(field, mark) for mark in ("ge", "gt", "le", "lt", "pattern")}
    choices: tuple[str, ...] = ()
    if get_origin(annotation) is Literal:
        kind: Kind = "choice"
        choices = get_args(annotation)
    elif get_origin(annotation) in (list, tuple):
        kind = "list"
    else:
        kind = _KINDS[annotation]
    return Key(
        name=name,
        kind=kind,
        default=field.default,
        about=field.description or "",
        taken=next(mark for mark in field.metadata if isinstance(mark, Taken)),
        least=limits["gt"] if limits["ge"] is None else limits["ge"],
        above=limits["gt"] is not None,
        none_or=next((mark.least for mark in field.metadata if isinstance(mark, NoneOr)), None),
        most=limits["lt"] if limits["le"] is None else limits["le"],
        below=limits["lt"] is not None,
        choices=choices,
        pattern=limits["pattern"],
        example=field.examples[0] if field.examples else None,
    )


def _limit(field: FieldInfo, mark: str) -> Any:
    found = (getattr(item, mark, None) for item in field.metadata)
    return next((limit for limit in found if limit is not None), None)
