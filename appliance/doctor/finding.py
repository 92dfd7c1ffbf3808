"""What a check found: how bad it is, what was seen, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "warning", "error"]
LEVELS: tuple[Level, ...] = ("ok", "note", "warning", "error")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: "note" asks for nothing, "warning" for something in time, "error" for something now.
        seen: what is so, a sentence.
        fix: what to do, with commands between backticks; empty when there is nothing to do.
        check: id of the check that found it.
    """

    level: Level
    seen: str
    fix: str = ""
    check: str = ""


def ok(seen: str) -> Finding:
    """All is well."""
    return Finding("ok", seen)


def note(seen: str, fix: str = "") -> Finding:
    """Something to know."""
    return Finding("note", seen, fix)


def warning(seen: str, fix: str) -> Finding:
    """Something that will make trouble if nobody looks after it."""
    return Finding("warning", seen, fix)


def error(seen: str, fix: str) -> Finding:
    """Something is broken."""
    return Finding("error", seen, fix)


def worst(findings: Iterable[Finding]) -> Level:
    """The gravest level among them; "ok" when there are none."""
    return max((finding.level for finding in findings), key=LEVELS.index, default="ok")
