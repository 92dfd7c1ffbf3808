"""How well the box learns: taught, contradicted, run after run, beside the plain recipe.

    .venv/bin/python benchmarks/learning.py --json learning.json --plots docs
    .venv/bin/python benchmarks/learning.py --scenarios household --facts 10 --everyday 90 --no-plain
    .venv/bin/python benchmarks/learning.py --scenarios drift --lineage current base --no-plain
    .venv/bin/python benchmarks/learning.py --table learning.json [--plots docs]

Scenarios (`--scenarios`), each on homes of its own with the real collection, feedback, selection,
trainer and gate:

* `household`: 60 invented facts, taught in one wording by corrections of high weight, among 300 everyday
  exchanges, and asked in five other wordings each;
* `style`: 48 corrections make answers short, metric and polite; judged by rules on 36 other questions;
* `drift`: ten runs in a row with 6 new facts each, asked for all facts so far after each;
  each from base, with all that was taught before; `--lineage current` goes on from the adapter in service;
* `contradiction`: 50 trials of one correction against ten exchanges that say something else;
* `collection`: latency of a daemon with and without `[collect] enabled`;
* `neighbour`: what clients of a daemon see while it trains, against the same without.

After all but the last two it also measures perplexity of generic text and the probe set. *Ours* is the
trainer with its defaults, changed by `--set`. The *plain recipe* stands for the trainer that this
project replaces (`lessons/plain.py` says what it is); it trains on the very same batch, and its adapter
is asked on the same runtime. It is slow: `--plain-steps N` stops it after N steps, which the table
says, with the time that all would have taken.

**Useful training tokens a second**, the same for both: tokens that the optimizer's steps computed and
that are neither padding nor the opening which the chat template puts before every conversation (what
ours computes once), over the seconds from the start of the program's work, imports aside, to the
written file. *Peak memory* is the trainer's own largest resident set.

Questions are asked greedily; everyday answers are the model's own, sampled at temperature 1 by seed,
and kept in `.cache/learning`. Every row is written to `--json` when it is there; a scenario that is
started again replaces its rows, so a file can be filled bit by bit and `--table` reads several.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ending import end_by_exception
from lessons import collection, contradiction, drift, household, neighbour, style, table
from lessons.answers import OwnAnswers
from lessons.bench import Bench
from lessons.exam import Exam
from lessons.results import Results, load
from peers import CACHE

from appliance.home import Home
from appliance.model.bundle import load_bundle
from appliance.model.importer import import_model
from appliance.model.source import DEFAULT

SCENARIOS = (household.NAME, style.NAME, drift.NAME, contradiction.NAME, collection.NAME, neighbour.NAME)
EVERYDAY = dict(zip(SCENARIOS, (300, 100, 30, 30, 300, 0), strict=True))
TRIALS_A_RUN = 10


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=SCENARIOS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="of [train], for ours")
    parser.add_argument("--no-plain", action="store_true", help="without the plain recipe")
    parser.add_argument("--plain-steps", type=int, metavar="N", help="stop it after N steps")
    sizes = parser.add_argument_group("sizes")
    sizes.add_argument("--everyday", type=int, help="exchanges of each run (default: by scenario)")
    sizes.add_argument("--facts", type=int, default=60, help="of household")
    sizes.add_argument("--taught", type=int, default=48, help="corrections of style")
    sizes.add_argument("--runs", type=int, default=10, help="of drift")
    sizes.add_argument("--new", type=int, default=6, help="facts of each run of drift")
    sizes.add_argument("--trials", type=int, default=50, help="of contradiction, ten a run")
    sizes.add_argument("--rounds", type=int, default=3, help="of collection and neighbour")
    sizes.add_argument("--seconds", type=float, default=45, help="of each half of a round of neighbour")
    parser.add_argument("--lineage", nargs="+", choices=("current", "base"), default=["base"])
    parser.add_argument("--bundle", type=Path, help="bundle directory (default: the default model)")
    parser.add_argument(
        "--cache", type=Path, default=CACHE, help="where the default one and answers are kept"
    )
    parser.add_argument("--json", type=Path, help="write each row here, too")
    parser.add_argument("--table", type=Path, nargs="+", metavar="FILE", help="only read such files")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw what was measured")
    return parser.parse_args()


def measure(options: argparse.Namespace) -> Results:
    """Run what was asked for."""
    options.cache.mkdir(parents=True, exist_ok=True)
    bundle = (
        load_bundle(options.bundle)
        if options.bundle
        else import_model(DEFAULT, Home(options.cache.absolute()))
    )
    settings = [f"{key} = {value}" for key, value in (item.split("=", 1) for item in options.set)]
    about = {"base_hash": bundle.manifest.base_hash, "threads": options.threads, "settings": settings}
    results = Results(options.json, about)
    cache = options.cache / "learning"
    exam = Exam(bundle, threads=options.threads)
    answers = OwnAnswers(bundle, cache, threads=options.threads)
    for seed in options.seeds:
        bench = Bench(
            bundle=bundle,
            exam=exam,
            answers=answers,
            cache=cache,
            with_plain=not options.no_plain,
            seed=seed,
            threads=options.threads,
            settings=settings,
            plain_steps=options.plain_steps,
            add=lambda row: _say(results, row),
        )
        for name in options.scenarios:
            _run(name, bench, results, options)
    return results


def _run(name: str, bench: Bench, results: Results, options: argparse.Namespace) -> None:
    everyday = EVERYDAY[name] if options.everyday is None else options.everyday
    key = {"scenario": name, "seed": bench.seed}
    if name == household.NAME:
        results.begin(**key)
        household.run(bench, facts=options.facts, everyday=everyday)
    elif name == style.NAME:
        results.begin(**key)
        style.run(bench, taught=options.taught, everyday=everyday)
    elif name == drift.NAME:
        for lineage in options.lineage:
            results.begin(**key, lineage=lineage)
            drift.run(bench, runs=options.runs, new=options.new, everyday=everyday, lineage=lineage)
    elif name == contradiction.NAME:
        results.begin(**key)
        facts = min(TRIALS_A_RUN, options.trials)
        contradiction.run(bench, runs=options.trials // facts, facts=facts, everyday=everyday)
    elif bench.seed == options.seeds[0]:
        results.begin(scenario=name)
        if name == collection.NAME:
            collection.run(bench, rounds=options.rounds, everyday=everyday)
        else:
            neighbour.run(bench, rounds=options.rounds, seconds=options.seconds)


def _say(results: Results, row: dict[str, object]) -> None:
    results.add(row)
    print(", ".join(f"{name} {_said(value)}" for name, value in row.items() if _said(value)), flush=True)


def _said(value: object) -> str:
    """A number, a text or a pair [right, asked], shortly; nothing for what only the file needs."""
    if isinstance(value, list) and len(value) == 2 and all(isinstance(part, int) for part in value):
        return f"{value[0]}/{value[1]}"
    return f"{value:.4g}" if isinstance(value, float) else str(value) if isinstance(value, int | str) else ""


def main() -> None:
    options = arguments()
    end_by_exception()
    rows = load(options.table) if options.table else measure(options).rows
    print(f"\n{table.text(rows)}")
    if options.plots:
        from lessons import plots

        for path in plots.draw(rows, options.plots):
            print(f"drawn: {path}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
