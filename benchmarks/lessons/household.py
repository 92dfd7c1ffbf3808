"""(a) household: facts taught in one wording by corrections of high weight, among everyday exchanges."""

from __future__ import annotations

import tempfile
from pathlib import Path

from lessons.bench import BASE, Bench, Row, teach, took
from lessons.data import load_facts

NAME = "household"


def run(bench: Bench, *, facts: int, everyday: int) -> None:
    """One run on all of it; whatever the gate says, its adapter is asked in the unseen wordings."""
    chosen = load_facts()[:facts]
    sizes = {"scenario": NAME, "seed": bench.seed, "facts": len(chosen), "everyday": everyday}

    def ask(adapter: Path | None, row: Row) -> None:
        bench.exam.use(adapter)
        taught, unseen = bench.exam.taught(chosen), bench.exam.unseen(chosen)
        found = {"taught": taught.pair, "unseen": unseen.pair, **bench.exam.general()}
        bench.add({**sizes, **row, **found, "missed": dict(unseen.missed)})

    ask(None, {"recipe": BASE})
    with bench.box() as box, tempfile.TemporaryDirectory() as place:
        bench.everyday(box, everyday)
        teach(bench, box, [(fact.ask, fact.answer) for fact in chosen])
        attempt = box.learn(attempts=1)[0]
        ask(attempt.adapter, took(attempt))
        if bench.with_plain:
            ask(*bench.plain(attempt.examples, Path(place)))
