"""Every key has what a form needs, and it is true."""

from __future__ import annotations

import ast
import contextlib
import functools
from pathlib import Path
from typing import Any

import pytest
from pydantic import create_model

import appliance
from appliance.config import Config, parse_config
from appliance.errors import InvalidSettings
from appliance.sections import AtUse, Taken
from appliance.settings import form
from appliance.settings.form import (
    Key,
    as_text,
    differences,
    groups,
    keys,
    reload_needed,
    restart_needed,
    values,
)
from appliance.settings.typed import apply

ALL = pytest.mark.parametrize("key", keys().values(), ids=lambda key: key.name)


def test_it_is_all_of_the_config_in_its_order() -> None:
    assert list(keys()) == list(values(Config()))
    assert [group.name for group in groups()] == list(Config.model_fields)
    assert [group.name for group in groups() if not group.about or group.about[0].islower()] == []
    assert {name: key.default for name, key in keys().items()} == values(Config())


def test_every_key_says_when_it_is_taken() -> None:
    for name, field in Config.model_fields.items():
        section: Any = field.annotation
        for key, item in section.model_fields.items():
            assert sum(isinstance(mark, Taken) for mark in item.metadata) == 1, f"{name}.{key}"


# Found by reading; a part that is built with a value goes on with it whatever a new `Config` says.
AT_START = {
    "appliance/app.py": {"bind", "max_body_mb", "max_connections", "name"},
    "appliance/process.py": {"log_level", "log_format"},
    "appliance/engine/engine.py": {
        *("context_length", "slots", "queue", "threads", "prefill_chunk", "prefill_beside"),
        *("prefix_cache_mb", "drafts", "extra_adapters"),
    },
    "appliance/learning/run.py": {"busy_share"},
    "appliance/learning/dropped.py": {"busy_share"},
}


@functools.cache
def _looked_up(source: Path) -> frozenset[str]:
    """The attributes that a module reads of anything."""
    tree = ast.parse(source.read_text(encoding="utf-8"))
    return frozenset(node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute))


def test_what_is_taken_at_the_start() -> None:
    marked = {key.title for key in keys().values() if key.taken is Taken.AT_START}
    assert marked == set().union(*AT_START.values())
    root = Path(appliance.__file__).parents[1]
    for path, names in AT_START.items():
        assert names <= _looked_up(root / path), path


@ALL
def test_it_is_used_somewhere(key: Key) -> None:
    sources = Path(appliance.__file__).parent.rglob("*.py")
    assert any(key.title in _looked_up(source) for source in sources if source.name != "sections.py")


@functools.cache
def _keeps_a_section(source: Path) -> frozenset[str]:
    """The sections that a module puts away: `self.x = config.section`, or at the top of the module.

    A part that has the section has its old values after a change.
    """
    kept = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Attribute):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if "config" in ast.unparse(node.value) and any(isinstance(at, ast.Attribute) for at in targets):
                kept.add(node.value.attr)
    return frozenset(kept & set(Config.model_fields))


def test_no_part_keeps_a_section() -> None:
    """The engine does, which is given the section `model`; it takes only keys that are marked so."""
    package = Path(appliance.__file__).parent
    keepers = {str(source): _keeps_a_section(source) for source in package.rglob("*.py")}
    assert {path: kept for path, kept in keepers.items() if kept} == {}


def test_what_is_marked_at_use_is_not_taken_by_what_is_built() -> None:
    """No `__init__` of the daemon reads a key marked so: it would go on with the value of then."""
    at_use = {key.title for key in keys().values() if key.taken is Taken.AT_USE}
    at_start = {key.title for key in keys().values() if key.taken is Taken.AT_START}
    package, found = Path(appliance.__file__).parent, []
    for source in package.rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name in ("__init__", "build", "create_app"):
                found += [
                    f"{source.name}: {leaf.attr}"
                    for leaf in ast.walk(node)
                    if isinstance(leaf, ast.Attribute)
                    and leaf.attr in at_use - at_start
                    and "config" in ast.unparse(leaf.value)
                ]
    assert found == []


def test_adopt() -> None:
    """A running daemon takes over what is looked up at its use, and keeps what it was built with."""
    running, new = Config(), parse_config("model.slots = 3\nmodel.top_p = 0.5\nlora.enabled = false")
    model, train = running.model, running.train
    running.adopt(new)
    assert (running.model.slots, running.model.top_p, running.lora.enabled) == (8, 0.5, False)
    assert model.top_p == 0.9  # what has begun goes on with what it took
    assert running.train is train
    assert [key.name for key in restart_needed(running, new)] == ["model.slots"]
    assert reload_needed(running, new) == ()
    running.adopt(Config())
    assert running == Config()


@ALL
def test_every_key_is_adopted_or_waits(key: Key) -> None:
    other = _other(key)
    running, new = Config(), apply({}, {key.name: other})
    waiting = restart_needed(running, new)
    assert waiting + reload_needed(running, new) == (key,)
    running.adopt(new)
    assert (running == Config()) == key.restart == (waiting == (key,))
    assert (running == new) != key.restart


def _other(key: Key) -> str:
    """A value that is allowed and not the default."""
    if key.kind == "flag":
        return as_text(not key.default)
    if key.kind == "choice":
        return next(choice for choice in key.choices if choice != key.default)
    if key.kind == "text":
        return {"server.bind": "127.0.0.1:1", "model.name": "other"}.get(key.name, key.example or "other")
    nearer = [key.default + 1, key.default - 1, key.default * 0.9 + 0.001]
    fits = (as_text(value) for value in nearer if key.kind == "number" or isinstance(value, int))
    for text in fits:
        with contextlib.suppress(InvalidSettings):
            apply({}, {key.name: text})
            return text
    raise AssertionError(key.name)


@ALL
def test_the_default_goes_through_the_form(key: Key) -> None:
    assert apply({}, {key.name: as_text(key.default)}) == Config()
    assert key.about.endswith(".")


@ALL
def test_limits_are_those_of_the_model(key: Key) -> None:
    """The limit itself is accepted or not as the key says; what is beyond it never."""
    step = 1 if key.kind == "whole" else 1e-6
    for limit, outside, away in ((key.least, key.above, -step), (key.most, key.below, step)):
        if limit is None:
            continue
        assert key.kind in ("whole", "number")
        inside = key.none_or if key.none_or and limit == key.least else limit - away
        for value, refused in ((limit, outside), (limit + away, True), (inside, False)):
            try:
                apply({}, {key.name: as_text(float(value))})
            except InvalidSettings as error:
                assert refused, f"{value}: {error}"
                assert list(error.problems) == [key.name]
            else:
                assert not refused, value


@ALL
def test_the_kind_is_that_of_the_default(key: Key) -> None:
    kinds = {"whole": int, "number": (int, float), "text": str, "choice": str, "flag": bool, "list": list}
    assert isinstance(key.default, kinds[key.kind])
    assert (key.kind == "flag") == isinstance(key.default, bool)
    assert bool(key.choices) == (key.kind == "choice")
    for choice in key.choices:
        assert values(apply({}, {key.name: choice}))[key.name] == choice
    if key.pattern:
        assert key.example is not None, "a pattern is nothing to show to people"
        assert apply({}, {key.name: key.example})


def test_kinds() -> None:
    kinds = {name: keys()[name].kind for name in ("model.slots", "model.top_p", "lora.enabled")}
    assert kinds == {"model.slots": "whole", "model.top_p": "number", "lora.enabled": "flag"}
    assert keys()["server.log_level"].choices == ("DEBUG", "INFO", "WARNING", "ERROR")
    assert keys()["train.ort_python"].kind == "text"
    top_p = keys()["model.top_p"]
    assert (top_p.least, top_p.above, top_p.most, top_p.below) == (0, True, 1, False)
    forgotten = keys()["gate.max_forgotten"]
    assert (forgotten.least, forgotten.above, forgotten.most, forgotten.below) == (0, False, 1, True)
    assert (top_p.section, top_p.title) == ("model", "top_p")


def test_a_list_is_one_item_a_line() -> None:
    model: Any = create_model("Lists", names=(AtUse[tuple[str, ...]], ("a",)))
    assert form._key("x.names", model.model_fields["names"]).kind == "list"
    assert as_text(["a", "b c"]) == "a\nb c"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (False, "false"),
        (3, "3"),
        (60.0, "60"),
        (0.0016, "0.0016"),
        (1e300, "1e+300"),
        ("", ""),
    ],
)
def test_texts(value: object, text: str) -> None:
    assert as_text(value) == text


def test_differences() -> None:
    new = parse_config("[lora]\nenabled = false\nbatch_timeout_minutes = 60.0\n[train]\nrank = 8")
    found = differences(Config(), new)
    assert [(item.key, item.old, item.new) for item in found] == [
        ("lora.enabled", True, False),
        ("train.rank", 16, 8),
    ]
    assert differences(new, new) == ()
    assert [key.name for key in reload_needed(Config(), new)] == ["lora.enabled", "train.rank"]
