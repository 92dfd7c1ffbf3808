"""The recipe: from examples and a starting model to an adapter."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from appliance.failpoints import failpoint
from appliance.learning.train.checkpoint import Checkpoint
from appliance.learning.train.data import Example, Tokens, tokenise
from appliance.learning.train.learner import Learner
from appliance.learning.train.loss import step_terms
from appliance.learning.train.plan import (
    Rehearsal,
    Visit,
    fair_cap,
    own_visits,
    rehearsal_visits,
    rejected_visit,
    steps,
    taught_visits,
)
from appliance.learning.train.shelf import Shelf
from appliance.model.tokenizer import Tokenizer
from appliance.sections import TrainConfig

WARMUP = 0.1  # share of the steps
LEAST_VISITS = 8  # of a taught example, however little it weighs
MOST_VISITS = 120  # of a taught example, however much it weighs
HEAVIEST = 4.0  # one visit counts; beyond that a larger weight has no further effect
MOST_STEPS = (
    6000  # full steps that what people taught may take in a run; beyond, the dearest get fewer visits
)
REPLAYED = 1 / 5  # of the weight of a taught example counts when it is repeated: it is known already
REJECTED_VISITS = 4  # of a rejected answer
ANCHORED = (40, 60)  # paragraphs and questions
REHEARSED = (24, 240)  # and again for every `DRAWN_FOR` taught: the more is learned, the more can be lost
DRAWN_FOR = 20
JUDGED = (12, 36)
STEPS = 300  # in fewer, little is learned; unless a step had fewer tokens than
SMALL_STEP = 64
GROUP_TOKENS = 128  # a forward pass when nothing is learned from it
CHECKS = 6  # parts of a run, after each of which the held-out slice is looked at
PATIENCE = 2  # checks in a row that may be much worse than the one before; then the run is lost
LEAST_HELDOUT = 8  # examples that can tell
WORSE = 0.1  # nats a token; less is common while the learning rate is high, and mends itself
TOLD = 20  # times at most that the trainer tells how far a stage without steps is
SCALES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)

HELDOUT = "heldout"

Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Outcome:
    """What the training reached; losses are nats per token, None without held-out examples."""

    heldout_before: float | None
    heldout_after: float | None
    text_rise: float
    scale: float


class Training:
    """One run of the recipe."""

    def __init__(
        self,
        learner: Learner,
        tokenizer: Tokenizer,
        examples: Sequence[Example],
        rehearsal: Rehearsal,
        settings: TrainConfig,
        report: Report,
        checkpoint: Checkpoint | None = None,
        *,
        goes_on: bool = False,
    ) -> None:
        """`goes_on`: the learner has learned the replayed examples before."""
        self._stage, self._of, self._done = "", 0, 0
        self._replayed = REPLAYED if goes_on else 1.0
        self._learner = learner
        self._tokenizer = tokenizer
        self._settings = settings
        self._report = report
        self._checkpoint = checkpoint
        self._rng = random.Random(settings.seed)
        self._taught = [item for item in examples if item.split != "heldout" and item.taught]
        self._own = [item for item in examples if item.split != "heldout" and not item.taught]
        self._heldout = [
            self._tokens(item) for item in examples if item.split == "heldout" and item.target.strip()
        ]
        # What the scale is judged on must not be what the drift was held down on.
        rehearse, judge = rehearsal.split()
        ordinary = rehearsal_visits(rehearse.sample(*ANCHORED, random.Random(0)), tokenizer)
        judged = rehearsal_visits(judge.sample(*JUDGED, random.Random(0)), tokenizer)
        self._rehearsal = [
            visit
            for _ in range(1 + round(len(self._taught) / DRAWN_FOR))
            for visit in rehearsal_visits(rehearse.sample(*REHEARSED, self._rng), tokenizer)
        ]
        self._ordinary, self._judge = ([visit.tokens for visit in some] for some in (ordinary, judged))

    def run(self) -> Outcome:
        """Train the learner's adapter."""
        visits = self._visits()
        trained = len(self._taught) + len(self._own)
        tokens, rehearsal = (
            sum(self._learner.size(visit.tokens) for visit in some) for some in (visits, self._rehearsal)
        )
        step = min(self._settings.batch_tokens, max(SMALL_STEP, tokens // STEPS))
        plan = steps(visits, step, self._learner.size, self._rng)
        start = {"steps": len(plan), "examples": trained, "tokens": tokens, "rehearsal": rehearsal}
        self._report({"event": "start", **start})
        if self._settings.anchor_weight:
            self._learner.anchor(self._ordinary, self._settings.anchor_weight)
        compared = sum(1 for visit in dict.fromkeys(visits) if visit.keep or visit.push is not None)
        self._begin("measuring", len(self._judge) + len(self._heldout) + compared)
        self._learner.prepare([*(visit.tokens for visit in visits), *self._judge, *self._heldout])
        with self._learner.base():
            text_before = self._loss(self._judge)
        before = self._heldout_loss()
        reference = self._references(visits)
        self._optimise(plan, reference, math.sqrt(step / self._settings.batch_tokens))
        if self._checkpoint is not None:
            self._checkpoint.done()
        self._begin("closing", 2 * len(self._judge) + len(self._heldout))
        scale, rise = self._settle(text_before)
        return Outcome(before, self._heldout_loss(), rise, scale)

    def _begin(self, stage: str, of: int) -> None:
        """What is done now takes long without a step: so many sequences are judged."""
        self._stage, self._of, self._done = stage, of, 0
        self._report({"event": "stage", "stage": stage, "done": 0, "of": of})

    def _judged(self, count: int) -> None:
        """Tell that, now and then."""
        before, self._done = self._done, self._done + count
        if self._stage and TOLD * before // max(self._of, 1) != TOLD * self._done // max(self._of, 1):
            done = min(self._done, self._of)
            self._report({"event": "stage", "stage": self._stage, "done": done, "of": self._of})

    def _tokens(self, example: Example) -> Tokens:
        limit = self._settings.max_tokens
        messages = list(example.messages)
        return tokenise(self._tokenizer, messages, example.target, ended=example.ended, limit=limit)

    def _visits(self) -> list[Visit]:
        settings, rng = self._settings, self._rng
        visits: list[Visit] = []
        totals = [
            example.weight * settings.epochs * (self._replayed if example.split == "replay" else 1.0)
            for example in self._taught
        ]
        for example, total, count in zip(self._taught, totals, self._counts(totals), strict=True):
            total = min(total, count * HEAVIEST)
            visits += taught_visits(example, self._tokenizer, count, total, settings.max_tokens, rng)
            wrong = rejected_visit(example, self._tokenizer, total / REJECTED_VISITS, settings.max_tokens)
            if wrong is not None and settings.rejected_weight:
                visits += [wrong] * REJECTED_VISITS
        for example in self._own:
            visits += own_visits(
                example, self._tokenizer, example.weight * settings.epochs, settings.max_tokens
            )
        return visits + self._rehearsal

    def _counts(self, totals: Sequence[float]) -> list[int]:
        """How often each taught example is visited: by its weight, within the bounds of one and of all."""
        counts = [min(max(LEAST_VISITS, round(total)), MOST_VISITS) for total in totals]
        sizes = [max(self._learner.size(self._tokens(item)), 1) for item in self._taught]
        costs = [count * size for count, size in zip(counts, sizes, strict=True)]
        cap = fair_cap(costs, MOST_STEPS * self._settings.batch_tokens)
        return [max(1, min(count, cap // size)) for count, size in zip(counts, sizes, strict=True)]

    def _references(self, visits: Iterable[Visit]) -> Shelf[Visit]:
        """What the starting model makes of the sequences it is compared on.

        For what was said here that is the adapter the run starts from; for the rest the bare base, so
        that drift does not add up from run to run.
        """
        wanted = dict.fromkeys(visit for visit in visits if visit.keep or visit.push is not None)
        out: Shelf[Visit] = Shelf()
        self._remember([visit for visit in wanted if visit.weight], out)
        with self._learner.base():
            self._remember([visit for visit in wanted if not visit.weight], out)
        return out

    def _remember(self, visits: Sequence[Visit], out: Shelf[Visit]) -> None:
        for group in self._groups(visits):
            judged = self._learner.judge([visit.tokens for visit in group])
            self._judged(len(group))
            for visit, found in zip(group, judged, strict=True):
                out.put(visit, found.hidden if visit.push is None else found.logp[visit.push :])

    def _groups(self, visits: Sequence[Visit]) -> list[list[Visit]]:
        return steps(visits, GROUP_TOKENS, self._learner.size, random.Random(0)) if visits else []

    def _optimise(self, plan: Sequence[Sequence[Visit]], references: Shelf[Visit], pace: float) -> None:
        """All steps, at `pace` times the learning rate: small ones know less well where to go."""
        settings = self._settings
        # The mean over a run of all steps is one: a step counts by the weights it holds.
        unit = sum(visit.weight for step in plan for visit in step if visit.push is None) / len(plan) or 1.0
        every = max(1, len(plan) // CHECKS)
        done, checks = self._resume(plan)
        self._stage = ""  # from here on the steps tell how far it is
        for number, step in enumerate(plan[done:], done + 1):
            began = time.perf_counter()
            terms = step_terms(
                step,
                references,
                unit=unit,
                drift_weight=settings.drift_weight,
                rejected_weight=settings.rejected_weight,
            )
            rate = settings.learning_rate * pace * _schedule(number, len(plan))
            try:
                loss = self._learner.learn([visit.tokens for visit in step], terms, rate)
            except ArithmeticError as error:
                raise ArithmeticError(f"Step {number}: {error}") from error
            tokens = sum(self._learner.size(visit.tokens) for visit in step)
            check = self._heldout_loss() if number % every == 0 and number < len(plan) else None
            checks += [] if check is None else [check]
            self._report(
                {
                    "event": "step",
                    "step": number,
                    "steps": len(plan),
                    "loss": round(loss, 5),
                    "heldout": check,
                    "tokens": tokens,
                    "tokens_per_second": round(tokens / (time.perf_counter() - began), 1),
                }
            )
            failpoint("train.stepped")
            if len(self._heldout) >= LEAST_HELDOUT and gets_worse(checks):
                self._report({"event": "stopped", "step": number, "steps": len(plan), "heldout": checks})
                return
            self._keep(number, checks)

    def _resume(self, plan: Sequence[Sequence[Visit]]) -> tuple[int, list[float]]:
        """Go on from the checkpoint, if there is one of this very plan.

        Nothing is random in a step, so the state is the adapter and what the optimizer remembers.

        Returns:
            How many steps are done, and what the held-out slice said meanwhile.
        """
        if self._checkpoint is None:
            return 0, []
        self._checkpoint.bind(repr(plan).encode())
        found = self._checkpoint.load()
        if found is None:
            return 0, []
        step, state = found
        checks = state.pop(HELDOUT).tolist()
        self._learner.restore(state)
        self._report({"event": "resumed", "step": step, "steps": len(plan)})
        return step, checks

    def _keep(self, step: int, checks: Sequence[float]) -> None:
        if self._checkpoint is not None and self._checkpoint.due():
            self._checkpoint.save(step, {**self._learner.state(), HELDOUT: np.array(checks, float)})

    def _settle(self, text_before: float) -> tuple[float, float]:
        """Scale the adapter down until text it has not seen is nearly as likely as before."""
        limit = math.log1p(self._settings.max_text_rise)
        done = 1.0
        rise = self._loss(self._judge) - text_before
        for scale in SCALES:
            if rise <= limit:
                break
            self._learner.scale(scale / done)
            done = scale
            rise = self._loss(self._judge) - text_before
        return done, math.expm1(rise)

    def _heldout_loss(self) -> float | None:
        return round(self._loss(self._heldout), 5) if self._heldout else None

    def _loss(self, items: Sequence[Tokens]) -> float:
        """Mean loss per answer token."""
        total, count = 0.0, 0
        for group in self._groups([Visit(item, 1.0) for item in items]):
            for found in self._learner.judge([visit.tokens for visit in group]):
                total -= float(found.logp.sum(dtype=float))
                count += len(found.logp)
            self._judged(len(group))
        return total / count if count else 0.0


def gets_worse(checks: Sequence[float]) -> bool:
    """Whether the last held-out losses, `PATIENCE` and one, rise from each to the next."""
    last = checks[-PATIENCE - 1 :]
    return len(last) > PATIENCE and all(new > old + WORSE for old, new in itertools.pairwise(last))


def _schedule(number: int, count: int) -> float:
    """Linear up over the first steps, then down along a cosine to a twentieth."""
    warm = max(1, round(count * WARMUP))
    if number <= warm:
        return number / warm
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (number - warm) / max(1, count - warm)))
