"""Examples as JSON lines: taking them along, and bringing them in.

A line has the fields of an example that mean something on any box. What names rows of this one (runs,
completions, the example that superseded it) stays here.

Bringing in is as if it were said again, in the order of the lines: what this box has learned from an
example elsewhere it has not learned, so that is pending again; and feedback does to earlier examples
and rejected answers what it always does.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from appliance.errors import Conflict, InvalidRequest
from appliance.reading import tidy_json
from appliance.store.browse import EVERYTHING, Browse, Filter
from appliance.store.db import Database
from appliance.store.example import DRAFT_NOTE, MAX_WEIGHT, Example, Kind, NewExample, State
from appliance.store.examples import Examples
from appliance.store.normalise import context_key, normalise, text_key

SLACK_SECONDS = 86_400.0
"""Clocks differ; what was created later than this from now was not created."""

_LEARNED: tuple[State, ...] = ("training", "used")
_ENDED: tuple[State, ...] = ("superseded", "excluded")

Name = Annotated[str, Field(min_length=1, max_length=64)]


class _Message(BaseModel):
    """A message of a conversation, whatever else it has."""

    model_config = ConfigDict(strict=True, extra="allow")

    role: str


class Line(BaseModel):
    """A line. Only `kind`, `query` and `response` must be there."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    id: Annotated[str, Field(pattern=r"\Aex_[0-9a-f]{24}\z")] | None = None
    created: Annotated[float, Field(gt=0)] | None = None
    kind: Kind
    state: State = "pending"
    query: str
    response: str
    target: str | None = None
    weight: Annotated[float, Field(gt=0, le=MAX_WEIGHT)] = 1.0
    feedback: str | None = None
    messages: list[_Message] = []
    correction: str | None = None
    rating: Literal["up", "down"] | None = None
    finish_reason: Literal["stop", "length"] = "stop"
    device: Name | None = None
    source: Name = "import"
    note: str | None = None
    masked: dict[str, Annotated[int, Field(gt=0)]] | None = None


FIELDS = tuple(Line.model_fields)


def example_line(example: Example) -> str:
    """The example as a line, newline included."""
    values = {name: getattr(example, name) for name in FIELDS}
    if example.state in _LEARNED and example.superseded_by is not None:
        # Here it only waits for its run to end; elsewhere there is no such run.
        values["state"] = "superseded"
    return json.dumps(values, ensure_ascii=False) + "\n"


class Transfer:
    """Reads and writes the table `examples` as JSON lines."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._browse = Browse(database)
        self._examples = Examples(database)

    def export(self, filter: Filter = EVERYTHING) -> Iterator[str]:
        """A line for each example that the filter lets through, oldest first; a few are in memory."""
        return map(example_line, self._browse.each(filter))

    def add(self, lines: Iterable[str | bytes]) -> int:
        """Bring in examples, all or none; says how many. Blank lines are skipped.

        Nothing else can be written meanwhile, a second or two for ten thousand lines, so they should come
        from a file, not from a network.

        Raises:
            InvalidRequest: a line is not an example; the message begins with its number and `param`
                names its field.
            Conflict: a line is there already, has been forgotten, or teaches a rejected answer.
            StorageFull: the disk is full.
        """
        added = 0
        with self._db.transaction("examples"):
            last = self._db.value("SELECT coalesce(max(seq), 0) FROM examples")
            for number, text in enumerate(lines, 1):
                if not text.strip():
                    continue
                try:
                    self._add(_parse(text), last)
                except InvalidRequest as error:
                    raise type(error)(
                        f"Line {number}: {error.message} Nothing was imported.", param=error.param
                    ) from error
                added += 1
        return added

    def _add(self, line: Line, last: int) -> None:
        new = _example(line)
        self._refuse_known(line.id, new, last)
        waits, taught = new.state not in _ENDED, new.kind in ("correction", "critique")
        rejected = self._examples.is_rejected(new.query, new.response, new.giver)
        if waits and new.kind == "automatic" and rejected:
            raise Conflict("People have rejected this answer to this query.", param="response")
        example = self._examples.add(new, id=line.id, created=line.created)
        # What people said of an answer holds even when the example has ended.
        if taught and (new.target is None or normalise(new.target) != normalise(new.response)):
            self._examples.reject_answer(new.query, new.response, example.id, new.giver)
        if new.kind != "automatic" and new.target is not None:
            self._examples.accept_answer(new.query, new.target, new.giver)
        if waits and taught:
            self._examples.supersede(
                new.query, example.id, spare_corrections=new.target is None, by=new.giver
            )
        elif waits and new.kind == "praise":
            self._examples.supersede_exchange(example.id, new.giver)

    def _refuse_known(self, id: str | None, new: NewExample, last: int) -> None:
        """Refuse what is in the store, or was.

        Args:
            id: of the example, if the line says.
            new: the example.
            last: the last number before the import. A box may have been told the same thing twice;
                bringing in what another one has must not fail because of that.
        """
        if self._db.value("SELECT 1 FROM examples WHERE id = ?", (id,)):
            raise Conflict(f"The example {id} is there already.", param="id")
        if self._db.value("SELECT 1 FROM forgotten WHERE example_id = ?", (id,)):
            raise Conflict(f"The example {id} has been forgotten.", param="id")
        same = self._db.value(
            "SELECT id FROM examples WHERE query_key = ? AND seq <= ? AND kind = ? AND context_key = ?"
            " AND response_key = ? AND target_key IS ? LIMIT 1",
            (
                text_key(new.query),
                last,
                new.kind,
                context_key(new.messages),
                text_key(new.response),
                None if new.target is None else text_key(new.target),
            ),
        )
        if same:
            raise Conflict(f"It is there already, as {same}.", param="query")


def _parse(text: str | bytes) -> Line:
    try:
        data = text.encode(errors="surrogatepass") if isinstance(text, str) else text
        return Line.model_validate_json(tidy_json(data, "It"))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = [str(part) for part in first["loc"]]
        if not where:
            raise InvalidRequest(f"This is no JSON object with an example: {first['msg']}.") from error
        raise InvalidRequest(f"`{'.'.join(where)}`: {first['msg']}.", param=where[0]) from error


def _example(line: Line) -> NewExample:
    """What a line means.

    Raises:
        InvalidRequest: its fields do not go together.
    """
    if line.created is not None and line.created > time.time() + SLACK_SECONDS:
        raise InvalidRequest("`created` lies in the future.", param="created")
    told = {"correction": line.correction, "critique": None}.get(line.kind, line.response)
    target = told if line.target is None else line.target
    if target is not None:
        same = normalise(target) == normalise(line.response)
        if line.kind in ("automatic", "praise") and not same:
            raise InvalidRequest(f"The target of {line.kind} examples is the response.", param="target")
        # A correction may be of form only ("paris" to "Paris").
        if same and (
            line.kind == "critique" or (line.kind == "correction" and target == line.response.strip())
        ):
            raise InvalidRequest("The target is the rejected answer.", param="target")
    state: State = "pending" if line.state in _LEARNED else line.state
    if state in ("pending", "parked") and (line.note or "").startswith(DRAFT_NOTE):
        state = "review"  # wherever it comes from, nobody has said yes to it
    if target is None and state == "pending":
        raise InvalidRequest("Without a target it can only be in review.", param="target")
    messages = [message.model_dump() for message in line.messages]
    kept = {name: getattr(line, name) for name in FIELDS if name not in ("id", "created")}
    # Whose word it was is not in the line; a device's is told as the migration to schema 10 tells it.
    own = line.kind == "automatic" or line.source == "api"
    kept |= {"target": target, "state": state, "giver": line.device if own else None}
    return NewExample(**kept | {"messages": messages or [{"role": "user", "content": line.query}]})
