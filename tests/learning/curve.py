"""The loss of a few steps, by the backend and from the adapter named on the command line.

A program of its own, for the backends do not live in one environment.
"""

from __future__ import annotations

import importlib
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from appliance.learning.train.data import Tokens, common_prefix, tokenise
from appliance.learning.train.learner import Learner
from appliance.learning.train.loss import Terms, step_terms
from appliance.learning.train.plan import Rehearsal, Visit, rehearsal_visits
from appliance.model.bundle import load_bundle
from appliance.model.checkpoint import load_checkpoint
from appliance.model.tokenizer import Tokenizer
from appliance.sections import TrainConfig

SETTINGS = TrainConfig(rank=4, alpha=8.0, layers=0.1)
STEPS = 11
RESUME_AT = 8
ANCHOR_WEIGHT = 10.0
TEXT = "The harbour was quiet in the morning, and the ferries left one after another."


def batch(tokenizer: Tokenizer) -> list[Visit]:
    """A visit of each kind: taught, own, rejected, prose."""
    asked = [{"role": "user", "content": "What is the name of our boat?"}]

    def answered(answer: str) -> Tokens:
        return tokenise(tokenizer, asked, answer, ended=True, limit=128)

    return [
        Visit(answered("Our boat is called Marigold."), 10.0),
        Visit(answered("I do not know the name of your boat."), 1.0, keep=True),
        Visit(answered("Our boat is called Titanic."), 2.5, push=4),
        Visit(Tokens(tuple(tokenizer.encode(TEXT)), 1), 0.0, keep=True),
    ]


def ordinary(tokenizer: Tokenizer) -> list[Tokens]:
    """More than a row of it."""
    some = Rehearsal.load().sample(6, 6, random.Random(0))
    return [visit.tokens for visit in rehearsal_visits(some, tokenizer)]


def losses(learner: Learner, visits: list[Visit], ordinary: list[Tokens]) -> dict[str, Any]:
    """Of all steps, of the last ones again after a restore, and what is there in the end."""
    items = [visit.tokens for visit in visits]
    learner.anchor(ordinary, ANCHOR_WEIGHT)
    learner.prepare(items)
    with learner.base():
        found = learner.judge(items)
    references = {
        visit: judged.hidden if visit.push is None else judged.logp[visit.push :]
        for visit, judged in zip(visits, found, strict=True)
    }
    terms = step_terms(visits, references, unit=3.0, drift_weight=4.0, rejected_weight=0.3)
    out = [learner.learn(items, terms, 1.2e-3) for _ in range(RESUME_AT)]
    state = {name: array.copy() for name, array in learner.state().items()}
    out += [learner.learn(items, terms, 1.2e-3) for _ in range(STEPS - RESUME_AT)]
    learner.restore(state)
    again = [learner.learn(items, terms, 1.2e-3) for _ in range(STEPS - RESUME_AT)]
    nothing = np.zeros(sum(item.answer for item in items), np.float32)
    anchor = learner.learn(items, Terms(nothing, nothing, nothing), 0.0)
    learner.scale(0.5)
    return {
        "losses": out,
        "again": again,
        "anchor": anchor,
        "base": [float(judged.logp.sum()) for judged in found],
        "half": [float(judged.logp.sum()) for judged in learner.judge(items)],
        "torch": "torch" in sys.modules,
    }


def main() -> None:
    backend, path, start = sys.argv[1:]
    bundle = load_bundle(Path(path))
    tokenizer = Tokenizer(bundle)
    build = importlib.import_module(f"appliance.learning.train.{backend}").build
    learner = build(SETTINGS, 2, *load_checkpoint(bundle), common_prefix(tokenizer))
    fresh = {
        side: max(
            float(np.abs(matrix).max()) * (matrix.shape[1] ** 0.5 if side == "A" else 1)
            for name, matrix in learner.adapter().items()
            if f"lora_{side}" in name
        )
        for side in "AB"
    }
    learner.start_from({name: np.asarray(array) for name, array in load_file(start).items()}, 2.0)
    print(json.dumps({"fresh": fresh, **losses(learner, batch(tokenizer), ordinary(tokenizer))}))


if __name__ == "__main__":
    main()
