"""Random JSON schemas of the kind that clients send, all of which can be satisfied."""

from __future__ import annotations

import random
from typing import Any

NAMES = ("name", "age", "city", "größe", "a b", 'quo"te', "is_open", "tags")
WORDS = ("red", "green", "", "Ærøskøbing", "日本", 'say "hi"', "new\nline", "😀")


def random_schema(seed: int, depth: int = 2) -> dict[str, Any]:
    """The schema of a seed; an object more often than not."""
    chosen = random.Random(seed)
    if chosen.random() < 0.3:
        return _value(chosen, depth)
    schema = _object(chosen, depth)
    if chosen.random() < 0.2:
        schema["$defs"] = {"part": _value(chosen, 1)}
        schema["properties"]["part"] = {"$ref": "#/$defs/part"}
    return schema


def _value(chosen: random.Random, depth: int) -> dict[str, Any]:
    kinds = [_string, _integer, _number, _plain, _choice]
    if depth:
        kinds += [_object, _array, _any_of]
    return chosen.choice(kinds)(chosen, depth - 1)


def _string(chosen: random.Random, depth: int) -> dict[str, Any]:
    extra: list[dict[str, Any]] = [
        {},
        {"maxLength": chosen.randrange(6)},
        {"minLength": 1, "maxLength": 4},
        {"pattern": "^[A-Z]{2}-[0-9]{1,3}$"},
        {"pattern": "[aeiou]x?$"},
        {"format": "date"},
        {"format": "uuid"},
    ]
    return {"type": "string", **chosen.choice(extra)}


def _integer(chosen: random.Random, depth: int) -> dict[str, Any]:
    low = chosen.randrange(-50, 50)
    extra: list[dict[str, Any]] = [
        {},
        {"minimum": low, "maximum": low + chosen.randrange(200)},
        {"exclusiveMinimum": low},
        {"multipleOf": 5},
    ]
    return {"type": "integer", **chosen.choice(extra)}


def _number(chosen: random.Random, depth: int) -> dict[str, Any]:
    extra: list[dict[str, Any]] = [{}, {"minimum": 0, "maximum": 1}, {"exclusiveMaximum": -2.5}]
    return {"type": "number", **chosen.choice(extra)}


def _plain(chosen: random.Random, depth: int) -> dict[str, Any]:
    return {"type": chosen.choice(["boolean", "null", ["boolean", "null"], ["integer", "string"]])}


def _choice(chosen: random.Random, depth: int) -> dict[str, Any]:
    if chosen.random() < 0.5:
        return {"const": chosen.choice([*WORDS, 7, None, {"a": [1, 2]}])}
    return {"enum": chosen.sample([*WORDS, 1, 2.5, None, True, [], {}], chosen.randrange(1, 5))}


def _object(chosen: random.Random, depth: int) -> dict[str, Any]:
    names = chosen.sample(NAMES, chosen.randrange(4))
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: _value(chosen, depth) for name in names},
        "required": [name for name in names if chosen.random() < 0.7],
    }
    closed = chosen.random()
    if closed < 0.8:
        schema["additionalProperties"] = False
    elif closed < 0.9:
        schema["additionalProperties"] = {"type": "integer"}
    return schema


def _array(chosen: random.Random, depth: int) -> dict[str, Any]:
    fewest = chosen.randrange(3)
    schema: dict[str, Any] = {"type": "array", "items": _value(chosen, depth), "minItems": fewest}
    if chosen.random() < 0.8:
        schema["maxItems"] = fewest + chosen.randrange(2)
    return schema


def _any_of(chosen: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [_value(chosen, depth) for _ in range(2)]}
