"""What an example is: the types of `store/examples.py`."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from appliance.store.rows import from_json

Kind = Literal["automatic", "praise", "correction", "critique"]
State = Literal["pending", "training", "used", "review", "superseded", "excluded", "parked"]
KINDS: tuple[Kind, ...] = get_args(Kind)
STATES: tuple[State, ...] = get_args(State)

MAX_WEIGHT = 1000.0
DRAFT_NOTE = "draft:"
"""Start of the note of a critique whose target was drafted by the model and not yet seen by a person. No run
ever holds one, whatever its state says."""


@dataclass(frozen=True)
class NewExample:
    """An example to be stored.

    Attributes:
        response: what the model said; for corrections and critiques, the rejected answer.
        target: what to learn; None while a critique has no accepted draft.
        messages: the conversation the answer belongs to, without the answer.
        finish_reason: "length" is trained without an end of turn.
        source: where it came from ("api", "console", ...).
        giver: the device that asked, or whose word it is; None for the owner and who needs no key. It
            decides what else the example may replace.
        masked: how many private texts of each kind were replaced in it before it was stored.
    """

    kind: Kind
    query: str
    response: str
    target: str | None
    weight: float
    messages: list[dict[str, Any]]
    feedback: str | None = None
    correction: str | None = None
    rating: Literal["up", "down"] | None = None
    finish_reason: Literal["stop", "length"] = "stop"
    device: str | None = None
    source: str = "api"
    completion_id: str | None = None
    note: str | None = None
    state: State = "pending"
    masked: dict[str, int] | None = None
    giver: str | None = None


@dataclass(frozen=True)
class Example:
    """A stored example; see `NewExample` for the fields they share.

    Attributes:
        run_id: the run that holds, used or parked it.
        superseded_by: the feedback that made it obsolete; its own id when that has been forgotten.
        left_out: why its run does not train on it (see `learning/selection.py`).
    """

    id: str
    created: float
    kind: Kind
    state: State
    query: str
    response: str
    target: str | None
    weight: float
    feedback: str | None
    messages: list[dict[str, Any]]
    correction: str | None
    rating: Literal["up", "down"] | None
    finish_reason: Literal["stop", "length"]
    device: str | None
    source: str
    completion_id: str | None
    run_id: str | None
    note: str | None
    superseded_by: str | None = None
    masked: dict[str, int] | None = None
    left_out: str | None = None
    giver: str | None = None

    @property
    def drafted(self) -> bool:
        """The model wrote what it teaches, and nobody has said yes to that."""
        return (self.note or "").startswith(DRAFT_NOTE)

    @property
    def remark(self) -> str:
        """What was done to it that a person should see; empty for most."""
        masked = ", ".join(f"{kind} {count}" for kind, count in (self.masked or {}).items())
        marks = (("masked", masked), ("left out", self.left_out))
        return "; ".join(f"{name}: {what}" for name, what in marks if what)


# For annotations inside classes that have a method called `list`.
ExampleList: TypeAlias = list[Example]

COLUMNS = ", ".join(Example.__dataclass_fields__)


def example_from(row: sqlite3.Row) -> Example:
    """The example in a row that has `COLUMNS`."""
    fields = {name: row[name] for name in Example.__dataclass_fields__}
    return Example(**fields | {name: from_json(fields[name]) for name in ("messages", "masked")})
