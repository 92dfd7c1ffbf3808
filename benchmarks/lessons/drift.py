"""(c) drift: runs in a row, each with new facts, asked for all facts so far.

Each run is a live box's: replay of earlier examples, the gate, another attempt when that rejects, and
what it passes is in service for the next. Two lineages can be compared:

* `current`: a run starts from the adapter in service (and repeats `[train] replay_share`);
* `base`: it starts from base and learns everything again, by the queue that `forget --retrain` uses.

The plain recipe goes on from its own last adapter, without replay and without a gate, on the batches
of lineage `current`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from lessons.bench import Bench, Row, teach, took
from lessons.box import Attempt, Box
from lessons.data import Fact, load_facts

NAME = "drift"
Lineage = Literal["current", "base"]


def run(bench: Bench, *, runs: int, new: int, everyday: int, lineage: Lineage) -> None:
    """`runs` of them, with `new` facts and `everyday` exchanges each."""
    facts = load_facts()
    if runs * new > len(facts):
        raise SystemExit(f"There are {len(facts)} facts, not {runs * new}.")
    learned: list[str] = []
    plain: Path | None = None
    with bench.box() as box, tempfile.TemporaryDirectory() as place:
        for number in range(1, runs + 1):
            fresh, before = facts[(number - 1) * new : number * new], facts[: (number - 1) * new]
            key = {"scenario": NAME, "seed": bench.seed, "lineage": lineage, "run": number, "runs": runs}
            key |= {"facts": new, "everyday": everyday}
            bench.everyday(box, everyday, start=(number - 1) * everyday)
            teach(bench, box, [(fact.ask, fact.answer) for fact in fresh])
            began = time.monotonic()
            attempts = _learn(box, learned, lineage)
            last = attempts[-1]
            state = {"state": last.run.state, "attempts": len(attempts), "wall": time.monotonic() - began}
            bench.exam.use(box.serving)
            bench.add({**key, **took(last), **state, **_grade(bench, before, fresh)})
            if bench.with_plain and lineage == "current":
                plain, row = bench.plain(attempts[0].examples, Path(place), plain)
                bench.exam.use(plain)
                bench.add({**key, **row, **_grade(bench, before, fresh)})


def _learn(box: Box, learned: list[str], lineage: Lineage) -> list[Attempt]:
    before = box.current
    if lineage == "base":
        box.store.examples.requeue(learned)
        box.put_in_service(None)
    attempts = box.learn()
    if attempts[-1].run.state == "promoted":
        learned.append(attempts[-1].run.id)
    elif lineage == "base":
        box.put_in_service(before)
        box.take_back()  # what was known before must not be given up with what is new
    return attempts


def _grade(bench: Bench, before: Sequence[Fact], fresh: Sequence[Fact]) -> Row:
    """Recall in the unseen wordings: of all facts so far, those of earlier runs, those of this one."""
    earlier, new = bench.exam.unseen(before), bench.exam.unseen(fresh)
    everything = [earlier.right + new.right, earlier.asked + new.asked]
    found = {"recall": everything, "earlier": earlier.pair, "new": new.pair, **bench.exam.general()}
    return {**found, "missed": dict(earlier.missed + new.missed)}
