"""From a form's texts to a `Config`, by the same models that read the file, with the problems by key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from appliance.config import Config, meaning, unknown_key
from appliance.errors import InvalidSettings
from appliance.settings.form import keys

Changes = Mapping[str, Any]
"""New values by key (`section.name`): the text of a form or the value itself; None is back to the default."""


def apply(raw: Mapping[str, Any], changes: Changes) -> Config:
    """The settings that a file's content would mean after the changes.

    Raises:
        InvalidSettings: with every problem, those of keys that are not changed, too.
    """
    problems = {
        name: "This must be one line of printable characters."
        for name, value in changes.items()
        if isinstance(value, str) and not _listed(name) and not value.strip().isprintable()
    }
    data = {name: dict(table) if isinstance(table, dict) else table for name, table in raw.items()}
    for name, value in changes.items():
        section, _, title = name.partition(".")
        table = data.setdefault(section, {}) if title else data
        if not isinstance(table, dict):
            continue  # the model says so of the section
        if value is None:
            table.pop(title or section, None)
        else:
            table[title or section] = _plain(name, value)
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        for item in error.errors():
            problems.setdefault(_place(item), _explain(item))
        raise InvalidSettings(problems) from error
    if problems:
        raise InvalidSettings(problems)
    return config


def _listed(name: str) -> bool:
    return name in keys() and keys()[name].kind == "list"


def _plain(name: str, value: Any) -> Any:
    """Without what slips into a form: spaces around a value, empty lines of a list."""
    if not isinstance(value, str):
        return value
    if _listed(name):
        return [line.strip() for line in value.splitlines() if line.strip()]
    return value.strip()


def _place(item: Any) -> str:
    """The key at fault. A rule over several fields may name one in its context; else it is the section."""
    named = (item.get("ctx") or {}).get("key")
    return str(named) if named else ".".join(str(part) for part in item["loc"][:2])


def _explain(item: Any) -> str:
    if item["type"] != "extra_forbidden":
        return meaning(item)
    said = unknown_key([str(part) for part in item["loc"]])
    return f"{said[:1].upper()}{said[1:]}"
