"""(c) drift: runs in a row, each with new facts, asked for all facts so far.

Each run is a live box's: replay of earlier examples, the gate, another attempt when that rejects, and
what it passes is in service for the next. Two lineages can be compared:

* `base`: a run starts from base and learns again all that people taught, as a box does by default;
* `current`: it goes on from the adapter in service and repeats `[train] replay_share`, as a box does that
  was taught more than `[train] relearn` answers.

The plain recipe goes on from its own last adapter, without replay and without a gate, on the batches
of lineage `base`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from lessons.bench import Bench, Row, teach, took
from lessons.data import Fact, load_facts

NAME = "drift"
Lineage = Literal["current", "base"]


def run(bench: Bench, *, runs: int, new: int, everyday: int, lineage: Lineage) -> None:
    """`runs` of them, with `new` facts and `everyday` exchanges each."""
    facts = load_facts()
    if runs * new > len(facts):
        raise SystemExit(f"There are {len(facts)} facts, not {runs * new}.")
    plain: Path | None = None
    goes_on = ["relearn = 0"] if lineage == "current" else []
    with bench.box(settings=goes_on) as box, tempfile.TemporaryDirectory() as place:
        for number in range(1, runs + 1):
            fresh, before = facts[(number - 1) * new : number * new], facts[: (number - 1) * new]
            key = {"scenario": NAME, "seed": bench.seed, "lineage": lineage, "run": number, "runs": runs}
            key |= {"facts": new, "everyday": everyday}
            bench.everyday(box, everyday, start=(number - 1) * everyday)
            teach(bench, box, [(fact.ask, fact.answer) for fact in fresh])
            began = time.monotonic()
            attempts = box.learn()
            last = attempts[-1]
            state = {"state": last.run.state, "attempts": len(attempts), "wall": time.monotonic() - began}
            bench.exam.use(box.serving)
            bench.add({**key, **took(last), **state, **_grade(bench, before, fresh)})
            if bench.with_plain and lineage == "base":
                plain, row = bench.plain(attempts[0].examples, Path(place), plain)
                bench.exam.use(plain)
                bench.add({**key, **row, **_grade(bench, before, fresh)})


def _grade(bench: Bench, before: Sequence[Fact], fresh: Sequence[Fact]) -> Row:
    """Recall in the unseen wordings: of all facts so far, those of earlier runs, those of this one."""
    earlier, new = bench.exam.unseen(before), bench.exam.unseen(fresh)
    everything = [earlier.right + new.right, earlier.asked + new.asked]
    found = {"recall": everything, "earlier": earlier.pair, "new": new.pair, **bench.exam.general()}
    return {**found, "missed": dict(earlier.missed + new.missed)}
