"""Whether the box still learns: the queue moves, runs end well, nothing waits for the owner for ever."""

from __future__ import annotations

from collections.abc import Iterator

from appliance.doctor.box import Box, Tell
from appliance.doctor.clock import span
from appliance.doctor.finding import Finding, note, ok, warning
from appliance.learning.retry import load_retry
from appliance.store.runs import Run

LATE = 1800.0
"""Seconds beyond its time that a run may begin: the scheduler looks now and then, and one may be going on."""
ROW = 3
"""Runs that ended badly one after the other: once or twice is what gate and retries are for."""
BAD = frozenset({"failed", "rejected", "parked"})


def look(box: Box, tell: Tell) -> Iterator[Finding]:
    """By what the store knows; the daemon adds why a run is put off."""
    if box.store is None:
        return
    store, lora = box.store, box.config.lora
    pending = store.examples.count("pending")
    said = box.standing.learning if box.standing else {}
    going_on, deferral = said.get("run"), said.get("deferral")
    if not lora.enabled and pending:
        yield note(f"{pending} examples wait, and learning by itself is switched off ([lora] enabled).")
    elif pending:
        yield from _waiting(box, pending, going_on is not None, deferral)
    else:
        yield ok("No example waits.")
    parked = store.examples.count("parked")
    if parked:
        yield warning(
            f"{parked} examples are parked: their runs did not succeed, however often they were tried.",
            "Look at why in the console (Runs) and press Retry, or forget them: `shammah queue show "
            "--state parked`.",
        )
    yield from _ended(store.runs.list(limit=20))
    if review := store.examples.review_count():
        yield note(f"{review} drafts wait for your review.", "Console, Needs review.")


def _waiting(box: Box, pending: int, going_on: bool, deferral: dict[str, object] | None) -> Iterator[Finding]:
    assert box.store is not None
    oldest = box.store.examples.oldest_pending() or box.now
    due = oldest + box.config.lora.batch_timeout_minutes * 60
    retry = load_retry(box.store.settings)
    late = box.now - due
    age = f"{pending} examples wait, the oldest for {span(max(box.now - oldest, 0))}"
    if box.standing is None:
        yield note(f"{age}; nothing is learned while no daemon runs.", "`shammah daemon`")
    elif going_on:
        yield ok(f"{age}; a run is going on.")
    elif retry is not None and retry.waits(box.now):
        yield note(
            f"{age}; the next run starts in {span(retry.not_before - box.now)}, after one that did not "
            f"succeed."
        )
    elif deferral is not None:
        yield (warning if late > LATE else note)(
            f"{age}; the run is put off: {deferral.get('reason')}",
            "Give the box what it lacks, or change the limits in [resources]; `shammah train --now` asks "
            "again.",
        )
    elif late > LATE:
        yield warning(
            f"{age}, and a run should have begun {span(late)} ago.",
            "`shammah train --now` starts one and says what hinders it.",
        )
    else:
        yield ok(f"{age}; the next run begins by itself.")


def _ended(runs: list[Run]) -> Iterator[Finding]:
    ended = [run for run in runs if run.ended is not None and run.state != "cancelled"]
    bad = 0
    while bad < len(ended) and ended[bad].state in BAD:
        bad += 1
    if bad >= ROW:
        last = ended[0]
        many = f"{bad} or more" if bad == len(ended) == 20 else str(bad)
        yield warning(
            f"The last {many} runs did not succeed; the newest was {last.state}: "
            f"{last.reason or 'no reason is known'}",
            f"Its log and the gate's report: console, Runs, {last.id}; or runs/{last.id}/.",
        )
    elif ended:
        yield ok(f"The last run, {ended[0].id}, was {ended[0].state}.")
