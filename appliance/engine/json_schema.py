"""A client's JSON schema before native code sees it: bounded, and reduced to what constrains an answer.

The compiler behind `constraint.py` recurses on the machine's stack and expands what it is told to, so
nothing deep, long or explosive may reach it. This walk keeps a list of its own instead of recursing. What
it hands on has no annotations, names every referenced part once under `$defs`, and holds only keywords
that are followed. A keyword without effect is dropped. One that constrains and cannot be followed is
refused by its path, or dropped too when the caller was promised nothing (a tool that is not `strict`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from appliance.engine.json_keywords import (
    CONSTRAINING,
    MAX_CONSTANT,
    MAX_DEPTH,
    MAX_NAME,
    MAX_PROPERTIES,
    NOT_FOLLOWED,
    REFERENCES,
    VALUES,
    NotFollowed,
    SchemaRefused,
    WithoutEffect,
    anything,
    check_value,
    constant_chars,
    without_effect,
)
from appliance.engine.pattern import PatternRefused, check_pattern

Schema = dict[str, Any] | bool

MAX_TEXT = 200_000  # characters in a schema, annotations too
MAX_SCHEMAS = 5000
MAX_BRANCHES = 500  # of an anyOf
MAX_CONSTANTS = 50_000  # characters of all constants together
MAX_PARTS = 500  # that are referenced
MAX_LINKS = 64  # of a chain of references
MAX_DEPTHS = (
    2000  # of all parts that are referenced together: the compiler may go through them in one descent
)
_IN_PLACE = frozenset(("allOf", "anyOf", "oneOf"))


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


@dataclass(slots=True)
class _Task:
    """A schema to reduce.

    Attributes:
        raw: as it was sent.
        target: where the result goes.
        key: its key, or index, there.
        path: where it stands.
        part: the referenced part it belongs to.
        depth: how deep in that part.
        in_place: whether it says something of the part's own value, not of one inside.
    """

    raw: Any
    target: Any
    key: Any
    path: str
    part: str
    depth: int = 0
    in_place: bool = True


class _Walk:
    def __init__(self, root: Any, strict: bool) -> None:
        self._root = root
        self._strict = strict
        self._tasks: list[_Task] = []
        self._parts: dict[int, str] = {}  # by the identity of what is referenced: its name in the result
        self._reduced: dict[str, Any] = {}  # by that name
        self._depths: dict[str, int] = {}
        self._in_place: dict[str, set[str]] = {}  # parts that apply to the very same value
        self._places: dict[str, Any] | None = None
        self._schemas = self._constants = 0

    def result(self) -> Schema:
        found: dict[str, Any] = {}
        self._tasks.append(_Task(self._root, found, "", "#", "#"))
        while self._tasks:
            self._reduce(self._tasks.pop())
        if sum(self._depths.values()) > MAX_DEPTHS:
            raise SchemaRefused("its references lead too deep.")
        self._no_circles()
        schema: Schema = found[""]
        if self._reduced and isinstance(schema, dict):
            schema["$defs"] = self._reduced
        return schema

    def _reduce(self, task: _Task) -> None:
        self._schemas += 1
        if self._schemas > MAX_SCHEMAS:
            raise SchemaRefused(f"it has more than {MAX_SCHEMAS} schemas.")
        if task.depth > MAX_DEPTH:
            raise SchemaRefused(f"{_short(task.path)}: nested more than {MAX_DEPTH} deep.")
        self._depths[task.part] = max(self._depths.get(task.part, 1), task.depth + 1)
        if not isinstance(task.raw, dict):
            if self._strict and not isinstance(task.raw, bool):
                raise SchemaRefused(f"{_short(task.path)}: a schema is an object, true or false.")
            task.target[task.key] = task.raw if isinstance(task.raw, bool) else True
            return
        out: dict[str, Any] = {}
        task.target[task.key] = out
        raw = _modern(task.raw)
        for key, value in raw.items():
            if key not in CONSTRAINING:
                continue
            if value is None and key != "const" and not self._strict:
                continue  # as some programs write what is not given
            if key == "not" and anything(value) and not self._strict:
                task.target[task.key] = False  # how "never" is written
                return
            at = f"{task.path}/{_escaped(key)}"
            try:
                self._keyword(task, out, raw, key, value, at)
            except WithoutEffect:
                continue
            except NotFollowed as error:
                if self._strict:
                    raise SchemaRefused(f"{_short(at)}: {error}") from error
            except SchemaRefused as error:
                raise SchemaRefused(f"{_short(at)}: {error}") from error

    def _keyword(
        self, task: _Task, out: dict[str, Any], raw: dict[str, Any], key: str, value: Any, at: str
    ) -> None:
        if key in VALUES:
            out[key] = check_value(raw, key, value)
            if key in ("const", "enum"):
                self._constants += sum(map(constant_chars, value if key == "enum" else [value]))
                if self._constants > MAX_CONSTANTS:
                    raise SchemaRefused("the constants are too long together.")
        elif key in REFERENCES:
            self._refer(task, out, value)
        elif key in NOT_FOLLOWED:
            if not without_effect(raw, key, value):
                raise NotFollowed(f"{key} is not supported.")
        elif key in ("properties", "patternProperties"):
            self._map(task, out, key, value, at)
        elif key in ("items", "additionalProperties"):
            self._later(task, out, key, value, at)
        else:
            self._list(task, out, key, value, at)

    def _later(self, task: _Task, target: Any, key: Any, raw: Any, at: str, in_place: bool = False) -> None:
        target[key] = None  # holds its place in the order
        self._tasks.append(_Task(raw, target, key, at, task.part, task.depth + 1, in_place))

    def _map(self, task: _Task, out: dict[str, Any], key: str, value: Any, at: str) -> None:
        if not isinstance(value, dict):
            raise SchemaRefused("an object of schemas.")
        if len(value) > MAX_PROPERTIES:
            raise SchemaRefused(f"more than {MAX_PROPERTIES} properties.")
        inner: dict[str, Any] = {}
        out[key] = inner
        for name, schema in value.items():
            if len(name) > (MAX_NAME if key == "properties" else MAX_CONSTANT):
                raise SchemaRefused("a name is too long.")
            if key == "patternProperties":
                try:
                    check_pattern(name)
                except PatternRefused as error:
                    if self._strict:
                        raise SchemaRefused(f"{_short(name)}: {error}") from error
                    continue
            self._later(task, inner, name, schema, f"{at}/{_escaped(name)}")

    def _list(self, task: _Task, out: dict[str, Any], key: str, value: Any, at: str) -> None:
        if not isinstance(value, list):
            raise SchemaRefused("a list of schemas.")
        if len(value) > MAX_BRANCHES:
            raise SchemaRefused(f"more than {MAX_BRANCHES} schemas.")
        if key == "oneOf" and self._strict and "anyOf" not in task.raw and self._told_apart(value):
            key = "anyOf"  # no more than one can fit, which the compiler does not see behind references
        if key == "oneOf" and not self._strict:
            if "anyOf" in task.raw:
                return
            key = "anyOf"  # that only one fits cannot always be said
        out[key] = inner = [None] * len(value)
        in_place = task.in_place and key in _IN_PLACE
        for number, schema in enumerate(value):
            self._later(task, inner, number, schema, f"{at}/{number}", in_place)

    def _told_apart(self, branches: list[Any]) -> bool:
        """Whether all are objects with a field in them, required, that says something else in each."""
        marks: list[dict[str, set[str]]] = []
        for branch in branches:
            if isinstance(branch, dict) and "$ref" in branch:
                branch, _ = self._resolve(branch["$ref"])
            if not isinstance(branch, dict) or branch.get("type") != "object":
                return False
            fields, required = branch.get("properties"), branch.get("required")
            if not isinstance(fields, dict) or not isinstance(required, list):
                return False
            marks.append({name: _words(fields.get(name)) for name in required if isinstance(name, str)})
        for name in marks[0] if marks else ():
            said = [mark.get(name) or set() for mark in marks]
            if all(said) and len(set().union(*said)) == sum(map(len, said)):
                return True
        return False

    # -- references ---------------------------------------------------------------------------

    def _refer(self, task: _Task, out: dict[str, Any], value: Any) -> None:
        target, path = self._resolve(value)
        name = self._parts.get(id(target))
        if name is None:
            if len(self._parts) >= MAX_PARTS:
                raise SchemaRefused(f"more than {MAX_PARTS} parts are referenced.")
            name = self._parts[id(target)] = f"d{len(self._parts)}"
            self._reduced[name] = None
            self._tasks.append(_Task(target, self._reduced, name, path, name))
        out["$ref"] = f"#/$defs/{name}"
        if task.in_place:
            self._in_place.setdefault(task.part, set()).add(name)

    def _resolve(self, reference: Any) -> tuple[Any, str]:
        """What is referenced, past references that lead on and say nothing else; and its path."""
        for _ in range(MAX_LINKS):
            if not isinstance(reference, str) or len(reference) > MAX_CONSTANT:
                raise SchemaRefused("a reference is a short string.")
            target = self._look_up(reference)
            onward = [key for key in target if key in CONSTRAINING] if isinstance(target, dict) else []
            if len(onward) != 1 or onward[0] not in REFERENCES:
                return target, reference
            reference = target[onward[0]]
        raise SchemaRefused(f"a chain of more than {MAX_LINKS} references, or a circle of them.")

    def _look_up(self, reference: str) -> Any:
        base, _, fragment = reference.partition("#")
        known = self._named()
        if base not in known:
            raise NotFollowed(f"{_short(reference)} is not within the schema.")
        value, fragment = known[base], unquote(fragment)
        if fragment and not fragment.startswith("/"):
            if f"{base}#{fragment}" not in known:
                raise NotFollowed(f"there is no {_short(reference)}.")
            return known[f"{base}#{fragment}"]
        for step in fragment.split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(value, dict) and step in value:
                value = value[step]
            elif isinstance(value, list) and re.fullmatch("[0-9]{1,5}", step) and int(step) < len(value):
                value = value[int(step)]
            else:
                raise NotFollowed(f"there is no {_short(reference)}.")
        return value

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


def _modern(raw: dict[str, Any]) -> dict[str, Any]:
    """A schema in the words of the present draft."""
    changed = dict(raw)
    if isinstance(raw.get("items"), list):
        changed["prefixItems"] = changed.pop("items")
        if "additionalItems" in raw:
            changed["items"] = raw["additionalItems"]
    for plain, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if isinstance(raw.get(exclusive), bool):  # in draft 4 it says of the other that it is excluded
            del changed[exclusive]
            if raw[exclusive] and plain in changed:
                changed[exclusive] = changed.pop(plain)
    if not (REFERENCES | _IN_PLACE | {"if", "dependentSchemas"}) & raw.keys():
        # Nothing else evaluates: then it says what the plain keyword does.
        for old, new in (("unevaluatedProperties", "additionalProperties"), ("unevaluatedItems", "items")):
            if old in changed:
                changed.setdefault(new, changed.pop(old))
    return changed


def _words(schema: Any) -> set[str]:
    """The texts of which one is all that a schema lets through; none where it is not so plain."""
    schema = schema if isinstance(schema, dict) else {}
    words = [schema["const"]] if "const" in schema else schema.get("enum")
    plain = isinstance(words, list) and all(isinstance(word, str) for word in words)
    return set(words) if plain else set()


def _escaped(step: str) -> str:
    return step.replace("~", "~0").replace("/", "~1")


def _short(text: str) -> str:
    """What a schema says, to be put into a sentence."""
    text = re.sub(r"[\x00-\x1f\x7f-\x9f]", "�", text)
    return text if len(text) <= 200 else f"{text[:90]}…{text[-90:]}"
