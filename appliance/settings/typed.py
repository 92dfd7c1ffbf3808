"""From a form's texts to a `Config`, by the same models that read the file, with the problems by key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from appliance.config import Config, unknown_key
from appliance.errors import InvalidSettings
from appliance.settings.form import keys

Changes = Mapping[str, Any]
"""New values by key (`section.name`): the text of a form or the value itself; None is back to the default."""

_WHOLE, _NUMBER, _FLAG = (
    "This must be a whole number.",
    "This must be a number.",
    "This must be true or false.",
)
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
    "greater_than_equal": "This must be at least {ge:g}.",
    "greater_than": "This must be more than {gt:g}.",
    "less_than_equal": "This must be at most {le:g}.",
    "less_than": "This must be less than {lt:g}.",
    "literal_error": "This must be {expected}.",
    "string_type": "This must be a text.",
    "model_type": "This must be a table.",
}
"""What pydantic's types of errors mean to a person who looks at the field. Others keep their own words."""


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
    kind, context = item["type"], item.get("ctx") or {}
    if kind == "extra_forbidden":
        said = unknown_key([str(part) for part in item["loc"]])
        return f"{said[:1].upper()}{said[1:]}"
    if kind == "string_pattern_mismatch":
        key = keys().get(_place(item))
        return f"This must look like {key.example}." if key and key.example else str(item["msg"])
    if kind in _MEANINGS:
        return _MEANINGS[kind].format(**context)
    return f"{item['msg']}."
