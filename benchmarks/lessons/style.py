"""(b) style: answers must become short, metric and polite, by rules that a program can check.

* *short*: at most 25 words, said to the end;
* *metric*: no imperial unit, and a metric one where a measure is asked for;
* *polite*: it begins with "With pleasure", as all taught answers do.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lessons.bench import BASE, Bench, Row, teach, took
from lessons.data import load_style

NAME = "style"
WORDS = 25
TOKENS = 64
"""An answer that is still going on after these is too long whatever comes."""

POLITE = "with pleasure"
_IMPERIAL = re.compile(
    r"\b(inch(es)?|feet|foot|ft|yards?|miles?|mph|pounds?|lbs?|ounces?|oz|gallons?|pints?|quarts?"
    r"|fahrenheit)\b|\d\s*(?:°\s*F\b|in\b)|(?<=\d)['\u2032\"\u2033]",
    re.IGNORECASE,
)
_METRIC = re.compile(
    r"(?:\b|(?<=\d))((milli|centi|kilo)?(met(er|re)|gram(me)?|lit(er|re))s?|tonnes?|mm|cm|m|km|km/h|kph|g|kg|ml|l"
    r"|celsius|centigrade)\b|°\s*C\b",
    re.IGNORECASE,
)


def short(answer: str) -> bool:
    """Whether it is said in few words."""
    return 0 < len(answer.split()) <= WORDS


def metric(answer: str, measure: bool) -> bool:
    """Whether its units are those wanted; `measure` says that there must be one."""
    return not _IMPERIAL.search(answer) and (not measure or bool(_METRIC.search(answer)))


def polite(answer: str) -> bool:
    """Whether it has the form."""
    return answer.lstrip().casefold().startswith(POLITE)


def judge(answers: Sequence[tuple[str, bool]]) -> dict[str, Any]:
    """Shares of answers that keep each rule, and all; each answer with whether it must have a measure.

    The share of `metric` is that of the answers which must have one: the others hardly ever fail.
    """
    kept = [(short(text), metric(text, measure), polite(text)) for text, measure in answers]
    measures = [rules[1] for rules, (_, measure) in zip(kept, answers, strict=True) if measure]
    count = len(answers)
    return {
        "judged": count,
        "short": sum(rules[0] for rules in kept) / count,
        "metric": sum(measures) / max(len(measures), 1),
        "polite": sum(rules[2] for rules in kept) / count,
        "all_rules": sum(all(rules) for rules in kept) / count,
    }


def run(bench: Bench, *, taught: int, everyday: int) -> None:
    """One run on `taught` corrections; judged on questions that are not among them."""
    data = load_style()
    pairs = data.taught[:: max(1, len(data.taught) // taught)][:taught]  # measures first, then others
    sizes = {"scenario": NAME, "seed": bench.seed, "corrections": len(pairs), "everyday": everyday}

    def ask(adapter: Path | None, row: Row) -> None:
        bench.exam.use(adapter)
        answers = bench.exam.ask([*data.measures, *data.others], TOKENS)
        measure = [True] * len(data.measures) + [False] * len(data.others)
        scores = judge(list(zip(answers, measure, strict=True)))
        bench.add({**sizes, **row, **scores, **bench.exam.general(), "answers": answers})

    ask(None, {"recipe": BASE})
    with bench.box() as box, tempfile.TemporaryDirectory() as place:
        bench.everyday(box, everyday, without=[question for question, _ in data.taught])
        teach(bench, box, pairs)
        attempt = box.learn(attempts=1)[0]
        ask(attempt.adapter, took(attempt))
        if bench.with_plain:
            ask(*bench.plain(attempt.examples, Path(place)))
