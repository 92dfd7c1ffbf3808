"""What single keywords of a JSON schema may say, and which of them say nothing.

`json_schema.py` walks a schema and asks here about each keyword that holds values rather than schemas.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from appliance.engine.pattern import PatternRefused, check_pattern

MAX_DEPTH = 64  # of schemas within each other, or of a constant
MAX_PROPERTIES = 1000  # of an object
MAX_VALUES = 2000  # of an enum
MAX_NAME = 256
MAX_CONSTANT = 4000  # characters of a constant, or of an enum's value
MAX_LENGTH = 100_000  # a greater maxLength or maxItems is taken for this: nothing so long is ever answered
MAX_LEAST = {"minLength": 10_000, "minItems": 1000, "minProperties": 1000}
MAX_MULTIPLE = 10_000  # states of an automaton
MAX_INTEGER = 2.0**63
MAX_FLOAT = 1e15

MOST = frozenset(("maxItems", "maxLength", "maxProperties"))
LOWER, UPPER = frozenset(("minimum", "exclusiveMinimum")), frozenset(("maximum", "exclusiveMaximum"))
REFERENCES = frozenset(("$ref", "$dynamicRef", "$recursiveRef"))
VALUES = frozenset(("type", "const", "enum", "required", "pattern", "format", "multipleOf", *MAX_LEAST)) | (
    MOST | LOWER | UPPER
)
"""Followed, and no schemas in them."""
NOT_FOLLOWED = frozenset(
    ("not", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems", "propertyNames")
) | frozenset(
    ("dependentRequired", "dependentSchemas", "dependencies", "unevaluatedItems", "unevaluatedProperties")
)
FORMATS = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
)
TYPES = frozenset(("null", "boolean", "number", "integer", "string", "array", "object"))


class SchemaRefused(Exception):
    """A schema that cannot be served; the message says why, and where in it."""


class NotFollowed(SchemaRefused):
    """It would have to be left out; whoever was promised nothing can be served without."""


class WithoutEffect(Exception):
    """A keyword that constrains nothing that is ever answered."""


def check_value(raw: dict[str, Any], key: str, value: Any) -> Any:
    """What to compile of a keyword's value.

    Args:
        raw: the schema it is in.
        key: one of `VALUES`.
        value: what it says.

    Raises:
        WithoutEffect: nothing.
        NotFollowed: it cannot be followed.
        SchemaRefused: it is malformed, or too large to be read on.
    """
    if key in MAX_LEAST or key in MOST:
        return _count(key, value)
    if key in LOWER or key in UPPER:
        return _bound(raw, key, value)
    match key:
        case "type":
            return _type(value)
        case "required":
            return _required(value)
        case "pattern":
            return _pattern(value)
        case "format":
            return _format(raw, value)
        case "multipleOf":
            return _multiple(value)
        case "const":
            constant_chars(value)
        case "enum":
            if not isinstance(value, list) or len(value) > MAX_VALUES:
                raise SchemaRefused(f"a list of at most {MAX_VALUES} values.")
    return value


def constant_chars(value: Any) -> int:
    """About how many characters a constant has.

    Raises:
        SchemaRefused: it is too large.
    """
    chars, waiting = 0, [(value, 0)]
    while waiting:
        inner, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise SchemaRefused(f"nested more than {MAX_DEPTH} deep.")
        if isinstance(inner, dict):
            chars += sum(len(name) + 4 for name in inner)
            waiting += [(member, depth + 1) for member in inner.values()]
        elif isinstance(inner, list):
            chars += 2 * len(inner)
            waiting += [(member, depth + 1) for member in inner]
        else:
            chars += len(inner) if isinstance(inner, str) else 2
            if isinstance(inner, int | float) and not abs(inner) <= MAX_INTEGER:
                raise SchemaRefused("too large a number.")
        if chars > MAX_CONSTANT:
            raise SchemaRefused("too long.")
    return chars


def _type(value: Any) -> Any:
    several = value if isinstance(value, list) else [value]
    unknown = [each for each in several if not isinstance(each, str) or each not in TYPES]
    if unknown:
        raise NotFollowed(f"there is no type {str(unknown[0])[:40]!r}.")
    if len(several) > len(TYPES):
        raise NotFollowed("more types than there are.")
    return value


def _required(value: Any) -> Any:
    if isinstance(value, bool):
        raise WithoutEffect  # as the third draft wrote it, at the property itself
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise SchemaRefused("a list of names.")
    if len(value) > MAX_PROPERTIES or any(len(name) > MAX_NAME for name in value):
        raise SchemaRefused("too many names, or too long ones.")
    return value


def _count(key: str, value: Any) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise SchemaRefused("a whole number of 0 or more.")
    if key in MOST:
        return min(value, MAX_LENGTH)
    if value > MAX_LEAST[key]:
        raise NotFollowed(f"at most {MAX_LEAST[key]}.")
    return value


def _bound(raw: dict[str, Any], key: str, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise SchemaRefused("a number.")
    most = MAX_INTEGER if raw.get("type") == "integer" else MAX_FLOAT
    if (value <= -most) if key in LOWER else (value >= most):
        raise WithoutEffect
    if abs(value) > most:
        raise NotFollowed("too large a number.")
    return value


def _multiple(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < abs(value) < float("inf"):
        raise SchemaRefused("a number greater than 0.")
    _, digits, exponent = Decimal(str(value)).normalize().as_tuple()
    exponent = int(exponent)
    if not -9 <= exponent <= 9 or int("".join(map(str, digits))) * 10 ** max(0, exponent) > MAX_MULTIPLE:
        raise NotFollowed(f"at most {MAX_MULTIPLE}, in units of its last decimal.")
    return value


def _pattern(value: Any) -> Any:
    if not isinstance(value, str):
        raise SchemaRefused("a regular expression.")
    try:
        check_pattern(value)
    except PatternRefused as error:
        raise NotFollowed(str(error)) from error
    return value


def _format(raw: dict[str, Any], value: Any) -> Any:
    if not isinstance(value, str):
        raise SchemaRefused("a format's name.")
    if value in FORMATS:
        return value
    types = raw.get("type", "string")
    if value == "password" or (isinstance(types, str | list) and "string" not in types):
        raise WithoutEffect  # for the eye, or of numbers (OpenAPI's int32)
    raise NotFollowed(f"the format {value[:40]!r} is not supported.")


def without_effect(raw: dict[str, Any], key: str, value: Any) -> bool:
    """Whether a keyword that is not followed need not be."""
    match key:
        case "uniqueItems":
            most = raw.get("maxItems")
            return value is False or (isinstance(most, int) and most <= 1)
        case "propertyNames":
            return anything(value, {"type": "string", "minLength": 0})
        case "not":
            return value is False
        case "if":
            return "then" not in raw and "else" not in raw
        case "then" | "else":
            return "if" not in raw or anything(value)
        case "contains":
            return raw.get("minContains") == 0 and "maxContains" not in raw
        case "minContains" | "maxContains":
            return True  # goes with `contains`, which is refused by itself
        case "dependentRequired":
            return isinstance(value, dict) and not any(value.values())
        case "dependentSchemas" | "dependencies":
            return isinstance(value, dict) and all(anything(each) or each == [] for each in value.values())
        case _:  # what is evaluated nowhere else may be anything
            return anything(value)


def anything(schema: Any, harmless: dict[str, Any] | None = None) -> bool:
    """Whether a schema lets everything through, as far as that is plain to see."""
    if not isinstance(schema, dict):
        return schema is True
    known = harmless or {}
    return all(key not in CONSTRAINING or (key in known and known[key] == schema[key]) for key in schema)


SCHEMAS = frozenset(("properties", "patternProperties", "items", "additionalProperties")) | frozenset(
    ("prefixItems", "allOf", "anyOf", "oneOf")
)
"""Followed, and schemas in them."""
CONSTRAINING = VALUES | SCHEMAS | NOT_FOLLOWED | REFERENCES
"""All others only tell people and programs something."""
