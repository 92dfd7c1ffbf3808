"""The recipe: from examples and a starting model to an adapter."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from appliance.config import TrainConfig
from appliance.learning.train.data import Example, Tokens, tokenise
from appliance.learning.train.loss import answer_loss, drift, rejection
from appliance.learning.train.network import Network
from appliance.learning.train.plan import (
    Rehearsal,
    Visit,
    own_visits,
    rehearsal_visits,
    rejected_visit,
    steps,
    taught_visits,
)
from appliance.model.tokenizer import Tokenizer

WARMUP = 0.1  # share of the steps
LEAST_VISITS = 8  # of a taught example, however little it weighs
REJECTED_VISITS = 4  # of a rejected answer
REJECTED_MARGIN = 1.0  # nats a token that a rejected answer shall lose
GROUP_TOKENS = 128  # a forward pass when nothing is learnt from it
SCALES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)

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
        network: Network,
        tokenizer: Tokenizer,
        examples: Sequence[Example],
        rehearsal: Rehearsal,
        settings: TrainConfig,
        report: Report,
    ) -> None:
        self._network = network
        self._tokenizer = tokenizer
        self._settings = settings
        self._report = report
        self._rng = random.Random(settings.seed)
        self._taught = [item for item in examples if item.split != "heldout" and item.taught]
        self._own = [item for item in examples if item.split != "heldout" and not item.taught]
        self._heldout = [
            self._tokens(item) for item in examples if item.split == "heldout" and item.target.strip()
        ]
        # What the scale is judged on must not be what the drift was held down on.
        rehearse, judge = rehearsal.split()
        self._rehearsal = rehearsal_visits(rehearse, tokenizer)
        self._judge = [visit.tokens for visit in rehearsal_visits(judge, tokenizer)]

    def run(self) -> Outcome:
        """Train the network's adapter."""
        visits = self._visits()
        plan = steps(visits, self._settings.batch_tokens, self._network.size, self._rng)
        trained = len(self._taught) + len(self._own)
        self._report({"event": "start", "steps": len(plan), "examples": trained})
        with torch.no_grad(), self._network.base():
            text_before = self._loss(self._judge)
        before = self._heldout_loss()
        reference = self._references(visits)
        self._optimise(plan, reference)
        scale, rise = self._settle(text_before)
        return Outcome(before, self._heldout_loss(), rise, scale)

    def _tokens(self, example: Example) -> Tokens:
        limit = self._settings.max_tokens
        messages = list(example.messages)
        return tokenise(self._tokenizer, messages, example.target, ended=example.ended, limit=limit)

    def _visits(self) -> list[Visit]:
        settings, rng = self._settings, self._rng
        visits: list[Visit] = []
        for example in self._taught:
            total = example.weight * settings.epochs
            count = max(LEAST_VISITS, round(total))
            visits += taught_visits(example, self._tokenizer, count, total, settings.max_tokens, rng)
            wrong = rejected_visit(example, self._tokenizer, total / REJECTED_VISITS, settings.max_tokens)
            if wrong is not None and settings.rejected_weight:
                visits += [wrong] * REJECTED_VISITS
        for example in self._own:
            visits += own_visits(
                example, self._tokenizer, example.weight * settings.epochs, settings.max_tokens
            )
        return visits + self._rehearsal

    def _references(self, visits: Iterable[Visit]) -> dict[Visit, Tensor]:
        """What the starting model makes of the sequences it is compared on.

        For what was said here that is the adapter the run starts from; for the rest the bare base, so
        that drift does not add up from run to run. Of a rejected answer only the log probabilities
        are kept.
        """
        wanted = dict.fromkeys(visit for visit in visits if visit.keep or visit.push is not None)
        out: dict[Visit, Tensor] = {}
        with torch.no_grad():
            chats = [visit for visit in wanted if visit.weight]
            others = [visit for visit in wanted if not visit.weight]
            self._remember(chats, out)
            with self._network.base():
                self._remember(others, out)
        return out

    def _remember(self, visits: Sequence[Visit], out: dict[Visit, Tensor]) -> None:
        for group in self._groups(visits):
            states = self._network.hidden([visit.tokens for visit in group])
            for visit, state in zip(group, states, strict=True):
                if visit.push is None:
                    out[visit] = state
                else:
                    logits = self._network.logits(state[visit.push :]).log_softmax(-1)
                    out[visit] = torch.gather(logits, 1, _answer(visit)[visit.push :, None])[:, 0]

    def _groups(self, visits: Sequence[Visit]) -> list[list[Visit]]:
        return steps(visits, GROUP_TOKENS, self._network.size, random.Random(0)) if visits else []

    def _optimise(self, plan: Sequence[Sequence[Visit]], reference: dict[Visit, Tensor]) -> None:
        settings = self._settings
        parameters = self._network.parameters()
        optimizer = torch.optim.AdamW(
            parameters, lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.0
        )
        # The mean over a run of all steps is one: a step counts by the weights it holds.
        unit = sum(visit.weight for step in plan for visit in step if visit.push is None) / len(plan) or 1.0
        every = max(1, len(plan) // 4)
        for number, step in enumerate(plan, 1):
            began = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * _schedule(number, len(plan))
            loss = self._step_loss(step, reference, unit)
            if not torch.isfinite(loss):
                raise ArithmeticError(f"The loss is not finite at step {number}.")
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            tokens = sum(self._network.size(visit.tokens) for visit in step)
            self._report(
                {
                    "event": "step",
                    "step": number,
                    "steps": len(plan),
                    "loss": round(loss.item(), 5),
                    "heldout": self._heldout_loss() if number % every == 0 and number < len(plan) else None,
                    "tokens": tokens,
                    "tokens_per_second": round(tokens / (time.perf_counter() - began), 1),
                }
            )

    def _step_loss(self, step: Sequence[Visit], reference: dict[Visit, Tensor], unit: float) -> Tensor:
        settings = self._settings
        states = self._network.hidden([visit.tokens for visit in step])
        logits = torch.split(self._network.logits(torch.cat(states)), [len(state) for state in states])
        learn, kept, pushed = [], [], []
        for visit, ours in zip(step, logits, strict=True):
            targets = _answer(visit)
            if visit.push is not None:
                at = visit.push
                lost = rejection(ours[at:], targets[at:], reference[visit], REJECTED_MARGIN)
                pushed.append(visit.weight * lost)
                continue
            if visit.weight:
                learn.append(visit.weight * answer_loss(ours, targets))
            if visit.keep:
                kept.append((len(ours), drift(ours, self._network.logits(reference[visit]))))
        total = torch.zeros(())
        if learn:
            total = total + torch.stack(learn).sum() / unit
        if pushed:
            total = total + settings.rejected_weight * torch.stack(pushed).sum() / unit
        if kept:
            count = sum(length for length, _ in kept)
            total = total + settings.drift_weight * sum(length * value for length, value in kept) / count
        return total

    def _settle(self, text_before: float) -> tuple[float, float]:
        """Scale the adapter down until text it has not seen is nearly as likely as before."""
        limit = math.log1p(self._settings.max_text_rise)
        done = 1.0
        with torch.no_grad():
            rise = self._loss(self._judge) - text_before
            for scale in SCALES:
                if rise <= limit:
                    break
                self._network.scale(scale / done)
                done = scale
                rise = self._loss(self._judge) - text_before
        return done, math.expm1(rise)

    def _heldout_loss(self) -> float | None:
        if not self._heldout:
            return None
        with torch.no_grad():
            return round(self._loss(self._heldout), 5)

    def _loss(self, items: Sequence[Tokens]) -> float:
        """Mean loss per answer token."""
        total = count = 0.0
        for group in self._groups([Visit(item, 1.0) for item in items]):
            states = self._network.hidden([visit.tokens for visit in group])
            targets = torch.cat([_answer(visit) for visit in group])
            total += float(answer_loss(self._network.logits(torch.cat(states)), targets)) * len(targets)
            count += len(targets)
        return total / count if count else 0.0


def _answer(visit: Visit) -> Tensor:
    return torch.tensor(visit.tokens.ids[visit.tokens.start :])


def _schedule(number: int, count: int) -> float:
    """Linear up over the first steps, then down along a cosine to a twentieth."""
    warm = max(1, round(count * WARMUP))
    if number <= warm:
        return number / warm
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (number - warm) / max(1, count - warm)))
