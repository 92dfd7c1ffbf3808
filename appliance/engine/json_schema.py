"""A client's JSON schema before native code sees it: bounded, and reduced to what constrains an answer.

The compiler behind `constraint.py` recurses on the machine's stack and expands what it is told to, so
nothing deep, long or explosive may reach it. This walk keeps a list of its own instead of recursing. What
it hands on has no annotations, names every referenced part once under `$defs`, and holds only keywords
that are followed. A keyword without effect is dropped. One that constrains and cannot be followed is
refused by its path, or dropped too when the caller asked for no guarantee (a tool that is not `strict`).
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from appliance.engine.pattern import PatternRefused, check_pattern

Schema = dict[str, Any] | bool

MAX_TEXT = 200_000  # characters in a schema, annotations too
MAX_DEPTH = 64  # of schemas within each other, without references
MAX_DEPTHS = 2000  # of all parts that are referenced together: the compiler goes through them in one descent
MAX_SCHEMAS = 5000
MAX_PARTS = 500  # that are referenced
MAX_LINKS = 64  # of a chain of references
MAX_PROPERTIES = 1000  # of an object
MAX_BRANCHES = 500  # of an anyOf
MAX_VALUES = 2000  # of an enum
MAX_NAME = 256
MAX_CONSTANT = 4000  # characters of a constant, or of an enum's value
MAX_CONSTANTS = 50_000  # of all together
MAX_LENGTH = 100_000  # a greater maxLength or maxItems is taken for this: nothing so long is ever answered
MAX_LEAST = {"minLength": 10_000, "minItems": 1000, "minProperties": 1000}
MAX_MULTIPLE = 10_000  # states of an automaton
MAX_INTEGER = 2.0**63
MAX_FLOAT = 1e15
_LEAST = ("minItems", "minLength", "minProperties")
_MOST = ("maxItems", "maxLength", "maxProperties")
_LOWER, _UPPER = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")
_MAPS = ("properties", "patternProperties")
_LISTS = ("prefixItems", "allOf", "anyOf", "oneOf")
_ONE = ("items", "additionalProperties")
_IN_PLACE = ("allOf", "anyOf", "oneOf", "$ref")
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_FOLLOWED = frozenset(
    ("type", "const", "enum", "required", "pattern", "format", "multipleOf")
    + (*_LEAST, *_MOST, *_LOWER, *_UPPER, *_MAPS, *_LISTS, *_ONE, "$ref")
)
_NOT_FOLLOWED = frozenset(
    ("not", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems", "propertyNames")
    + ("dependentRequired", "dependentSchemas", "dependencies", "unevaluatedItems", "unevaluatedProperties")
)
_FORMATS = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
)
_TYPES = frozenset(("null", "boolean", "number", "integer", "string", "array", "object"))


class SchemaRefused(Exception):
    """A schema that cannot be served; the message says where in it, and why."""


def serve(schema: Any, *, strict: bool) -> Schema:
    """What to compile of a schema.

    Args:
        schema: as the client sent it.
        strict: refuse what cannot be followed, rather than leave it out.

    Raises:
        SchemaRefused: it is too large or costly, malformed, or says what cannot be followed.
    """
    if measure(schema) > MAX_TEXT:
        raise SchemaRefused("the schema is too large.")
    return _Walk(schema, strict).result()


def measure(schema: Any) -> int:
    """About how many characters a schema has; one that is too large is not read to its end."""
    chars, waiting = 0, [schema]
    while waiting and chars <= MAX_TEXT:
        value = waiting.pop()
        if isinstance(value, str):
            chars += len(value)
        elif isinstance(value, dict):
            chars += sum(len(key) for key in value) + 2 * len(value)
            waiting += value.values()
        elif isinstance(value, list):
            chars += 2 * len(value)
            waiting += value
        else:
            chars += 2
    return chars


class _Task:
    """A schema to reduce: where it stands, and where the result goes."""

    __slots__ = ("depth", "in_place", "key", "part", "path", "raw", "target")

    def __init__(
        self, raw: Any, target: Any, key: Any, path: str, part: str, depth: int = 0, in_place: bool = True
    ) -> None:
        self.raw, self.target, self.key = raw, target, key
        self.path, self.part, self.depth = path, part, depth
        self.in_place = in_place  # whether it says something of the part's own value, not of one inside


class _Walk:
    def __init__(self, root: Any, strict: bool) -> None:
        self._root = root
        self._strict = strict
        self._tasks: list[_Task] = []
        self._parts: dict[int, str] = {}  # by the identity of what is referenced: its name in the result
        self._depths: dict[str, int] = {}
        self._in_place: dict[str, set[str]] = {}  # parts that apply to the very same value
        self._places: dict[str, Any] | None = None
        self._schemas = self._constants = 0

    def result(self) -> Schema:
        found: dict[str, Any] = {}
        parts: dict[str, Any] = {}
        self._tasks.append(_Task(self._root, found, "", "#", "#"))
        self._targets = parts
        while self._tasks:
            self._reduce(self._tasks.pop())
        if sum(self._depths.values()) > MAX_DEPTHS:
            raise SchemaRefused("its references lead too deep.")
        self._no_circles()
        reduced: Schema = found[""]
        if parts:
            if reduced is True or reduced is False:
                return reduced
            assert isinstance(reduced, dict)
            reduced["$defs"] = parts
        return reduced

    # -- one schema ---------------------------------------------------------------------------

    def _reduce(self, task: _Task) -> None:
        raw, path = task.raw, task.path
        self._schemas += 1
        if self._schemas > MAX_SCHEMAS:
            raise SchemaRefused(f"it has more than {MAX_SCHEMAS} schemas.")
        if task.depth > MAX_DEPTH:
            raise SchemaRefused(f"{_short(path)}: nested more than {MAX_DEPTH} deep.")
        self._depths[task.part] = max(self._depths.get(task.part, 1), task.depth + 1)
        if isinstance(raw, bool):
            task.target[task.key] = raw
            return
        if not isinstance(raw, dict):
            if self._strict:
                raise SchemaRefused(f"{_short(path)}: a schema is an object, true or false.")
            task.target[task.key] = True
            return
        out: dict[str, Any] = {}
        task.target[task.key] = out
        raw = self._modern(raw, path)
        for key, value in raw.items():
            at = f"{path}/{_escaped(key)}"
            if value is None and key != "const" and not self._strict:
                continue  # as some programs write what is not given
            if key in _REFERENCES:
                self._refer(task, out, value, at)
            elif key in _FOLLOWED:
                self._follow(task, out, raw, key, value, at)
            elif key in _NOT_FOLLOWED and not _without_effect(raw, key, value):
                if self._strict:
                    raise SchemaRefused(f"{_short(at)}: {key} is not supported.")
                if key == "not" and _anything(value):
                    task.target[task.key] = False  # how "never" is written
                    return

    def _modern(self, raw: dict[str, Any], path: str) -> dict[str, Any]:
        """The same in the words of the present draft."""
        changed = dict(raw)
        if isinstance(raw.get("items"), list):
            changed["prefixItems"] = changed.pop("items")
            if "additionalItems" in raw:
                changed["items"] = raw["additionalItems"]
        if not any(key in raw for key in (*_IN_PLACE, *_REFERENCES, "if", "dependentSchemas")):
            # Nothing else evaluates: then it says what the plain keyword does.
            for old, new in (
                ("unevaluatedProperties", "additionalProperties"),
                ("unevaluatedItems", "items"),
            ):
                if old in changed:
                    value = changed.pop(old)
                    changed.setdefault(new, value)
        return changed

    def _follow(
        self, task: _Task, out: dict[str, Any], raw: dict[str, Any], key: str, value: Any, at: str
    ) -> None:
        if key in _MAPS:
            self._map(task, out, key, value, at)
        elif key in _LISTS:
            self._list(task, out, key, value, at)
        elif key in _ONE:
            self._later(task, out, key, value, at)
        elif key in ("const", "enum"):
            self._constant(key, value, at)
            out[key] = value
        elif key == "required":
            if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
                if isinstance(value, bool):
                    return  # as the third draft wrote it, at the property itself
                raise SchemaRefused(f"{_short(at)}: a list of names.")
            if len(value) > MAX_PROPERTIES or any(len(name) > MAX_NAME for name in value):
                raise SchemaRefused(f"{_short(at)}: too many names, or too long ones.")
            out[key] = value
        elif key in (*_LEAST, *_MOST):
            self._count(out, key, value, at)
        elif key in (*_LOWER, *_UPPER):
            self._bound(out, raw, key, value, at)
        elif key == "multipleOf":
            self._multiple(out, value, at)
        elif key == "pattern":
            self._pattern(out, value, at)
        elif key == "format":
            self._format(out, raw, value, at)
        else:
            self._type(out, value, at)

    def _later(self, task: _Task, target: Any, key: Any, raw: Any, at: str, in_place: bool = False) -> None:
        target[key] = None  # holds its place in the order
        self._tasks.append(_Task(raw, target, key, at, task.part, task.depth + 1, in_place))

    def _map(self, task: _Task, out: dict[str, Any], key: str, value: Any, at: str) -> None:
        if not isinstance(value, dict):
            raise SchemaRefused(f"{_short(at)}: an object of schemas.")
        if len(value) > MAX_PROPERTIES:
            raise SchemaRefused(f"{_short(at)}: more than {MAX_PROPERTIES} properties.")
        inner: dict[str, Any] = {}
        for name, schema in value.items():
            here = f"{at}/{_escaped(name)}"
            if len(name) > (MAX_NAME if key == "properties" else MAX_CONSTANT):
                raise SchemaRefused(f"{_short(at)}: a name is too long.")
            if key == "patternProperties":
                try:
                    check_pattern(name)
                except PatternRefused as error:
                    if self._strict:
                        raise SchemaRefused(f"{_short(here)}: {error}") from error
                    continue
            self._later(task, inner, name, schema, here)
        out[key] = inner

    def _list(self, task: _Task, out: dict[str, Any], key: str, value: Any, at: str) -> None:
        if not isinstance(value, list):
            raise SchemaRefused(f"{_short(at)}: a list of schemas.")
        if len(value) > MAX_BRANCHES:
            raise SchemaRefused(f"{_short(at)}: more than {MAX_BRANCHES} schemas.")
        if key == "oneOf" and not self._strict:
            if "anyOf" in out or "anyOf" in task.raw:
                return
            key = "anyOf"  # that only one fits cannot always be said
        inner: list[Any] = [None] * len(value)
        in_place = task.in_place and key in _IN_PLACE
        for number, schema in enumerate(value):
            self._later(task, inner, number, schema, f"{at}/{number}", in_place)
        out[key] = inner

    # -- values -------------------------------------------------------------------------------

    def _constant(self, key: str, value: Any, at: str) -> None:
        if key == "enum" and (not isinstance(value, list) or len(value) > MAX_VALUES):
            raise SchemaRefused(f"{_short(at)}: a list of at most {MAX_VALUES} values.")
        for each in value if key == "enum" else [value]:
            chars, waiting = 0, [(each, 0)]
            while waiting:
                inner, depth = waiting.pop()
                if depth > MAX_DEPTH:
                    raise SchemaRefused(f"{_short(at)}: nested more than {MAX_DEPTH} deep.")
                if isinstance(inner, dict):
                    chars += sum(len(name) + 4 for name in inner)
                    waiting += [(member, depth + 1) for member in inner.values()]
                elif isinstance(inner, list):
                    chars += 2 * len(inner)
                    waiting += [(member, depth + 1) for member in inner]
                else:
                    chars += len(inner) if isinstance(inner, str) else 2
                    if isinstance(inner, int | float) and not abs(inner) <= MAX_INTEGER:
                        raise SchemaRefused(f"{_short(at)}: too large a number.")
            self._constants += chars
            if chars > MAX_CONSTANT or self._constants > MAX_CONSTANTS:
                raise SchemaRefused(f"{_short(at)}: too long.")

    def _count(self, out: dict[str, Any], key: str, value: Any, at: str) -> None:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise SchemaRefused(f"{_short(at)}: a whole number of 0 or more.")
        if key in _MOST:
            out[key] = min(value, MAX_LENGTH)
        elif value <= MAX_LEAST[key]:
            out[key] = value
        elif self._strict:
            raise SchemaRefused(f"{_short(at)}: at most {MAX_LEAST[key]}.")

    def _bound(self, out: dict[str, Any], raw: dict[str, Any], key: str, value: Any, at: str) -> None:
        if isinstance(value, bool):  # draft 4: what `minimum` says is excluded
            if value and "exclusive" in key:
                out[key] = value
            return
        if not isinstance(value, int | float) or value != value:
            raise SchemaRefused(f"{_short(at)}: a number.")
        most = MAX_INTEGER if raw.get("type") == "integer" else MAX_FLOAT
        if (value <= -most) if key in _LOWER else (value >= most):
            return  # nothing that is ever answered lies beyond
        if abs(value) > most:
            if self._strict:
                raise SchemaRefused(f"{_short(at)}: too large a number.")
            return
        out[key] = value

    def _multiple(self, out: dict[str, Any], value: Any, at: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < abs(value) < float("inf"):
            raise SchemaRefused(f"{_short(at)}: a number greater than 0.")
        _, digits, exponent = Decimal(str(value)).normalize().as_tuple()
        factor = int("".join(map(str, digits))) * 10 ** max(0, min(int(exponent), 9))
        if factor <= MAX_MULTIPLE and int(exponent) >= -9:
            out["multipleOf"] = value
        elif self._strict:
            raise SchemaRefused(
                f"{_short(at)}: at most {MAX_MULTIPLE}, or as many units of the last decimal."
            )

    def _pattern(self, out: dict[str, Any], value: Any, at: str) -> None:
        if not isinstance(value, str):
            raise SchemaRefused(f"{_short(at)}: a regular expression.")
        try:
            check_pattern(value)
        except PatternRefused as error:
            if self._strict:
                raise SchemaRefused(f"{_short(at)}: {error}") from error
            return
        out["pattern"] = value

    def _format(self, out: dict[str, Any], raw: dict[str, Any], value: Any, at: str) -> None:
        if not isinstance(value, str):
            raise SchemaRefused(f"{_short(at)}: a format's name.")
        types = raw.get("type", "string")
        if value in _FORMATS:
            out["format"] = value
        elif value != "password" and "string" in types and self._strict:
            raise SchemaRefused(f"{_short(at)}: the format {value[:40]!r} is not supported.")

    def _type(self, out: dict[str, Any], value: Any, at: str) -> None:
        several = value if isinstance(value, list) else [value]
        known = [each for each in several if isinstance(each, str) and each in _TYPES]
        if len(known) == len(several) <= len(_TYPES):
            out["type"] = value
        elif self._strict:
            unknown = next((each for each in several if each not in known), several)
            raise SchemaRefused(f"{_short(at)}: there is no type {_short(str(unknown))}.")

    # -- references ---------------------------------------------------------------------------

    def _refer(self, task: _Task, out: dict[str, Any], value: Any, at: str) -> None:
        if not isinstance(value, str) or len(value) > MAX_CONSTANT:
            raise SchemaRefused(f"{_short(at)}: a reference is a string.")
        try:
            target, path = self._resolve(value, at)
        except SchemaRefused:
            if self._strict:
                raise
            return
        name = self._parts.get(id(target))
        if name is None:
            if len(self._parts) >= MAX_PARTS:
                raise SchemaRefused(f"more than {MAX_PARTS} parts are referenced.")
            name = self._parts[id(target)] = f"d{len(self._parts)}"
            self._targets[name] = None
            self._tasks.append(_Task(target, self._targets, name, path, name))
        out["$ref"] = f"#/$defs/{name}"
        if task.in_place:
            self._in_place.setdefault(task.part, set()).add(name)

    def _resolve(self, reference: str, at: str) -> tuple[Any, str]:
        """What is referenced, past references that lead on and say nothing else; and its path."""
        for _ in range(MAX_LINKS):
            target, path = self._look_up(reference, at)
            onward = isinstance(target, dict) and [
                key for key in target if key in _FOLLOWED or key in _NOT_FOLLOWED or key in _REFERENCES
            ]
            if onward not in (["$ref"], ["$dynamicRef"]):
                return target, path
            reference, at = target[onward[0]], f"{path}/{onward[0]}"
            if not isinstance(reference, str):
                raise SchemaRefused(f"{_short(at)}: a reference is a string.")
        raise SchemaRefused(
            f"{_short(at)}: a chain of more than {MAX_LINKS} references, or a circle of them."
        )

    def _look_up(self, reference: str, at: str) -> tuple[Any, str]:
        base, mark, fragment = reference.partition("#")
        known = self._named()
        if base not in known:
            raise SchemaRefused(f"{_short(at)}: {_short(reference)} is not within the schema.")
        value, path = known[base], "#"
        fragment = unquote(fragment)
        if fragment and not fragment.startswith("/"):
            if f"{base}#{fragment}" not in known:
                raise SchemaRefused(f"{_short(at)}: there is no {_short(reference)}.")
            return known[f"{base}#{fragment}"], reference
        for step in fragment.split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(value, dict) and step in value:
                value = value[step]
            elif isinstance(value, list) and step.isdecimal() and len(step) < 6 and int(step) < len(value):
                value = value[int(step)]
            else:
                raise SchemaRefused(f"{_short(at)}: there is no {_short(reference)}.")
        return value, reference if mark else path

    def _named(self) -> dict[str, Any]:
        """What `$id` and anchors name, found once when it is first asked for."""
        if self._places is None:
            self._places = {"": self._root}
            waiting: list[tuple[Any, str]] = [(self._root, "")]
            while waiting:
                value, base = waiting.pop()
                if isinstance(value, list):
                    waiting += [(inner, base) for inner in value]
                if not isinstance(value, dict):
                    continue
                ident = value.get("$id", value.get("id"))
                if isinstance(ident, str):
                    ident = ident.partition("#")[0]
                    self._places.setdefault(ident, value)
                    base = base if value is self._root else ident
                for key in ("$anchor", "$dynamicAnchor"):
                    if isinstance(anchor := value.get(key), str):
                        self._places.setdefault(f"{base}#{anchor}", value)
                waiting += [(inner, base) for inner in value.values()]
        return self._places

    def _no_circles(self) -> None:
        """A part that is itself, without anything around it, has no end."""
        left = {name: set(targets) for name, targets in self._in_place.items()}
        while free := [name for name, targets in left.items() if not targets & left.keys()]:
            for name in free:
                del left[name]
        if left:
            raise SchemaRefused("a reference leads back to itself with nothing in between.")


def _without_effect(raw: dict[str, Any], key: str, value: Any) -> bool:
    """Whether a keyword that is not followed need not be."""
    match key:
        case "uniqueItems":
            most = raw.get("maxItems")
            return value is False or (isinstance(most, int) and most <= 1)
        case "propertyNames":
            return _anything(value, {"type": "string", "minLength": 0})
        case "not":
            return value is False
        case "if":
            return "then" not in raw and "else" not in raw
        case "then" | "else":
            return "if" not in raw or _anything(value)
        case "contains":
            return raw.get("minContains") == 0 and "maxContains" not in raw
        case "minContains" | "maxContains":
            return True  # goes with `contains`, which is refused by itself
        case "dependentRequired":
            return isinstance(value, dict) and not any(value.values())
        case "dependentSchemas" | "dependencies":
            return isinstance(value, dict) and all(_anything(each) or each == [] for each in value.values())
        case _:  # what is evaluated nowhere else may be anything
            return _anything(value)


def _anything(schema: Any, harmless: dict[str, Any] | None = None) -> bool:
    """Whether a schema lets everything through, as far as that is plain to see."""
    if not isinstance(schema, dict):
        return schema is True
    says = {key: value for key, value in schema.items() if key in _FOLLOWED or key in _NOT_FOLLOWED}
    known = harmless or {}
    return not any(key in _REFERENCES for key in schema) and all(
        key in known and known[key] == value for key, value in says.items()
    )


def _escaped(step: str) -> str:
    return step.replace("~", "~0").replace("/", "~1")


def _short(path: str) -> str:
    """A path that fits into a sentence."""
    path = re.sub(r"[\x00-\x1f\x7f]", "�", path)
    return path if len(path) <= 200 else f"{path[:90]}…{path[-90:]}"
