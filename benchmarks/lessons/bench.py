"""What every scenario works with: the two recipes, the exam, and where rows go."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.home import Home
from appliance.model.bundle import Bundle
from lessons.answers import REPLY, Answer, OwnAnswers
from lessons.box import Attempt, Box
from lessons.data import load_everyday
from lessons.exam import Exam

OURS, PLAIN, BASE = "ours", "plain", "base"
PROGRAM = Path(__file__).with_name("plain.py")

Row = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """One start of the benchmark.

    Attributes:
        with_plain: whether the plain recipe trains on each batch, too.
        settings: lines of our `[train]` section.
        plain_steps: the plain recipe stops after so many; None lets it end.
        add: keeps a row at once.
    """

    bundle: Bundle
    exam: Exam
    answers: OwnAnswers
    cache: Path
    with_plain: bool
    seed: int
    threads: int
    settings: Sequence[str]
    plain_steps: int | None
    add: Callable[[Row], None]

    @contextmanager
    def box(self, seed: int | None = None, settings: Sequence[str] = ()) -> Iterator[Box]:
        """A new box, with `settings` beside those of all; its home is gone afterwards."""
        seed = self.seed if seed is None else seed
        train = [f"threads = {self.threads}", f"seed = {seed}", *self.settings, *settings]
        with tempfile.TemporaryDirectory() as place:
            box = Box(self.bundle, Home(Path(place)), train, self.cache / "gate.json")
            try:
                yield box
            finally:
                box.close()

    def everyday(self, box: Box, count: int, *, start: int = 0, without: Sequence[str] = ()) -> None:
        """Devices ask `count` everyday questions, from the `start`-th on."""
        questions = load_everyday(without)[start : start + count]
        for question, answer in self.answers.get(questions, self.seed).items():
            box.exchange(question, answer)

    def plain(self, examples: Path, place: Path, parent: Path | None = None) -> tuple[Path, Row]:
        """Train by the plain recipe, in a process of its own; the adapter and what it took.

        Raises:
            SystemExit: it failed.
        """
        out = place / f"plain-{len(list(place.glob('plain-*')))}.safetensors"
        command = [sys.executable, "-P", str(PROGRAM), "--bundle", str(self.bundle.path)]
        command += ["--examples", str(examples), "--out", str(out)]
        command += ["--threads", str(self.threads), "--seed", str(self.seed)]
        command += ["--parent", str(parent)] if parent else []
        command += ["--steps", str(self.plain_steps)] if self.plain_steps else []
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"The plain recipe failed:\n{done.stderr[-3000:]}")
        row = json.loads(done.stdout.splitlines()[-1])
        return out, {"recipe": PLAIN, **row, "tokens_per_second": row["tokens"] / row["seconds"]}


def teach(bench: Bench, box: Box, pairs: Sequence[tuple[str, str]]) -> None:
    """A person asks what is in service each question and corrects the answer, all with high weight."""
    bench.exam.use(box.serving)
    said = bench.exam.ask([question for question, _ in pairs], REPLY)
    for (question, right), wrong in zip(pairs, said, strict=True):
        box.exchange(question, Answer(wrong, "stop"))
        box.correct(question, wrong, right)


def took(attempt: Attempt) -> Row:
    """What our recipe took, as a row has it."""
    return {
        "recipe": OURS,
        "tokens": attempt.tokens,
        "seconds": attempt.seconds,
        "tokens_per_second": attempt.tokens / attempt.seconds,
        "peak_mb": attempt.peak_mb,
        "verdict": attempt.verdict,
        "scale": (attempt.run.metrics or {}).get("scale"),
    }
