"""The audit trail in words: every act that the code writes down has a sentence and a place in the filter."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import appliance
from appliance.console.acts import in_words, path_of, plain
from appliance.console.audit import SUBJECTS
from appliance.console.chosen import ACTS
from appliance.store.audit import AuditEntry


def entry(action: str, **detail: object) -> AuditEntry:
    return AuditEntry(0.0, "owner", action, detail, 1)


def written() -> Iterator[str]:
    """The names of acts, found by reading the code."""
    for source in Path(appliance.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or len(node.args) < 2:
                continue
            console = isinstance(node.func, ast.Name) and node.func.id == "audit"
            store = isinstance(node.func, ast.Attribute) and ast.unparse(node.func).endswith("audit.add")
            if console or store:
                for part in ast.walk(node.args[1]):
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        yield f"console.{part.value}" if console else part.value


def test_every_act_has_words_and_a_subject() -> None:
    acts = {act for act in written() if not act.endswith(".")}
    assert len(acts) > 30
    acts |= {f"console.examples.{act}" for act in ACTS}
    families = [name for _, names in SUBJECTS.values() for name in names]
    for act in acts:
        assert in_words(entry(act)) != plain(entry(act)), act
        assert act.removeprefix("console.").partition(".")[0] in families, act


def test_an_act_leads_to_what_it_was_done_to() -> None:
    assert path_of(entry("console.train", run="run_1")) == "/runs/run_1"
    assert path_of(entry("adapter.promote", to="a b", **{"from": "c"})) == "/adapters/a%20b"
    assert path_of(entry("adapter.promote", to=None)) == ""
    assert path_of(entry("console.key.created", device="dev_1", name="x")) == "/devices/dev_1"
    assert path_of(entry("login")) == ""
