"""What the status page shows, gathered from the box. Blocking: call it in a thread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from appliance.console.resources import Resources, read_resources
from appliance.learning.probation import load_probation
from appliance.learning.service import LearningStatus
from appliance.learning.switch import lineage
from appliance.store.adapters import AdapterRow
from appliance.store.completions import StoredCompletion
from appliance.store.examples import Example
from appliance.store.runs import Run

RUNS_SHOWN = 8
ADAPTERS_SHOWN = 30
REVIEW_SHOWN = 20
SWITCHES_READ = 200


@dataclass(frozen=True)
class Overview:
    """The cards at the top.

    Attributes:
        model: name of the bundle.
        adapter: what answers now; None is the base model.
        since: when that came into service.
        can_roll_back: something else was in service before.
        previous: what that was; None is the base model.
        learning: the learning room's status.
        collecting: exchanges with devices are stored.
        paused: why they are not at the moment, though they should be.
        resources: a fresh reading.
    """

    model: str
    adapter: str | None
    since: float
    can_roll_back: bool
    previous: str | None
    learning: LearningStatus
    collecting: bool
    paused: str | None
    resources: Resources


@dataclass(frozen=True)
class AdapterLine:
    """A row of the list of adapters."""

    row: AdapterRow
    in_service: bool
    on_probation: bool


@dataclass(frozen=True)
class Adapters:
    """The list of adapters, newest first, and whether the base model answers."""

    lines: tuple[AdapterLine, ...]
    base_in_service: bool


def overview(ctx: Any) -> Overview:
    """Read the cards' figures."""
    serving = ctx.engine.adapter
    switches = ctx.store.adapters.switches(SWITCHES_READ)
    line = lineage(switches)
    before = line[: line.index(serving)] if serving in line else line
    return Overview(
        model=ctx.bundle.manifest.name,
        adapter=serving,
        since=switches[0].at if switches else ctx.started_at,
        can_roll_back=bool(before) or serving is not None,
        previous=before[-1] if before else None,
        learning=ctx.learning.status(),
        collecting=ctx.config.collect.enabled,
        paused=ctx.collector.paused,
        resources=read_resources(ctx.home.root),
    )


def runs(ctx: Any) -> list[Run]:
    """The last runs, newest first."""
    return list(ctx.store.runs.list(limit=RUNS_SHOWN))


def adapters(ctx: Any) -> Adapters:
    """The adapters known, newest first."""
    rows: list[AdapterRow] = sorted(ctx.store.adapters.list(), key=lambda row: row.created, reverse=True)
    serving = ctx.engine.adapter
    shown = rows[:ADAPTERS_SHOWN] + [row for row in rows[ADAPTERS_SHOWN:] if row.name == serving]
    probation = load_probation(ctx.store.settings)
    tried = probation.adapter if probation else None
    lines = (AdapterLine(row, row.name == serving, serving == tried) for row in shown)
    return Adapters(tuple(lines), serving is None)


@dataclass(frozen=True)
class Review:
    """The newest drafts that wait for the owner, and how many there are in all."""

    waiting: tuple[Example, ...]
    total: int


def review(ctx: Any) -> Review:
    """What the owner should look at."""
    examples = ctx.store.examples
    return Review(tuple(examples.review(REVIEW_SHOWN)), examples.review_count())


@dataclass(frozen=True)
class Exchange:
    """An answer of the chat box, and what the owner said about it.

    Attributes:
        before: the conversation that led to the question.
        rated: the feedback given on it, newest first to count.
    """

    completion: StoredCompletion
    before: tuple[dict[str, Any], ...]
    rated: Example | None


def exchange(ctx: Any, completion_id: str) -> Exchange | None:
    """An earlier answer of the chat box; None when it is not kept any more."""
    found: StoredCompletion | None = ctx.store.completions.get(completion_id)
    if found is None:
        return None
    rated = ctx.store.examples.feedback_on(found.id, found.query, found.response)
    return Exchange(found, tuple(found.messages[:-1]), rated)
