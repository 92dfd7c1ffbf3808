"""How well a run teaches: household facts by correction, asked afterwards in wordings not used to teach.

    python benchmarks/learning.py [--bundle DIR] [--sets 1 2 3] [--seeds 0] [--facts 10] [--everyday 90]
        [--json FILE]

For each set of ten facts and each seed it makes the batch that a live box would hold (the model's own
answer as the rejected one, corrections of high weight, everyday questions with the model's own sampled
answers), runs the real trainer program with the default settings, and asks on the ONNX runtime that
serves. Columns: facts right in the first unseen wording and in all of them, probes lost of those that
base answers, rise of the perplexity of generic text, corrections whose rejected answer became less
likely, seconds and peak memory of the trainer. Without `--bundle` it uses the default model under the
home. Everything is greedy except the everyday answers, which are sampled at temperature 1 by seed.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from appliance.adapters.file import read_adapter
from appliance.config import Config
from appliance.engine.cache import KVCache
from appliance.engine.offline import OfflineModel
from appliance.engine.session import Session
from appliance.home import Home
from appliance.learning.probes import ANSWER_TOKENS, generic_text, load_probes
from appliance.model.bundle import Bundle, load_bundle
from appliance.model.tokenizer import Tokenizer

DATA = json.loads((Path(__file__).parents[1] / "tests" / "data" / "household.json").read_text("utf-8"))
SET = 10
REPLY = 48
HELDOUT = 0.1

Message = dict[str, str]


@dataclass(frozen=True)
class Row:
    """One run's numbers."""

    facts: int
    seed: int
    first: str
    unseen: str
    probes_lost: int
    perplexity_rise: float
    rejected_down: str
    heldout_change: float | None
    scale: float
    seconds: float
    peak_mb: int


class Judge:
    """Asks and measures on the serving runtime; base's measures are taken once."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.tokenizer = Tokenizer(bundle)
        self.model = OfflineModel(bundle, threads=2)
        self.prose = self.tokenizer.encode(generic_text())
        self.probes = [
            probe for probe in load_probes() if probe.passes(self.ask(probe.question, ANSWER_TOKENS))
        ]
        self.perplexity = self.model.perplexity(self.prose)

    def prompt(self, question: str) -> list[int]:
        return self.tokenizer.encode_chat([{"role": "user", "content": question}])

    def ask(self, question: str, tokens: int = 24) -> str:
        answer = next(self.model.greedy([self.prompt(question)], tokens, self.tokenizer.eos_ids))
        return self.tokenizer.decode(answer)

    def likelihood(self, question: str, answer: str) -> float:
        tokens = self.tokenizer.encode_answer(answer, end=True)
        return float(self.model.logprobs(self.prompt(question), tokens).sum())


def knows(fact: dict[str, Any], answer: str) -> bool:
    return all(word.lower() in answer.lower() for word in fact["must_contain"])


def sample(
    bundle: Bundle, tokenizer: Tokenizer, questions: Sequence[str], seed: int
) -> list[tuple[str, str]]:
    """The model's own answers at temperature 1, with how each ended."""
    cache = KVCache(bundle.manifest, 1, 1024)
    session = Session(bundle, None, cache, threads=2)
    rng = np.random.default_rng(seed)
    answers = []
    for question in questions:
        tokens = tokenizer.encode_chat([{"role": "user", "content": question}])
        start, answer, finish = 0, [], "length"
        while len(answer) < REPLY:
            last = np.array([len(tokens) - 1], np.int64)
            place, count = np.array([start], np.int32), np.array([len(tokens)], np.int32)
            logits = session.step(np.array(tokens, np.int64), 0, place, count, last)
            start += len(tokens)
            token = int((logits[0] + rng.gumbel(size=logits.shape[1])).argmax())
            if token in tokenizer.eos_ids:
                finish = "stop"
                break
            answer.append(token)
            tokens = [token]
        answers.append((tokenizer.decode(answer), finish))
    return answers


def batch(
    facts: Sequence[Any], rejected: Sequence[str], own: dict[str, tuple[str, str]]
) -> list[dict[str, Any]]:
    """The lines of `examples.jsonl`."""
    weights = Config().lora
    rows = [
        _line(fact["ask"], fact["answer"], wrong, weights.high_weight, "train", "stop", "correction")
        for fact, wrong in zip(facts, rejected, strict=True)
    ]
    held = round(HELDOUT * (len(facts) + len(own)))
    for number, (question, (answer, finish)) in enumerate(own.items()):
        split = "heldout" if number < held else "train"
        if answer.strip():
            rows.append(_line(question, answer, None, weights.normal_weight, split, finish, "automatic"))
    return rows


def _line(
    question: str, target: str, rejected: str | None, weight: float, split: str, finish: str, kind: str
) -> dict[str, Any]:
    return {
        "id": question,
        "messages": [{"role": "user", "content": question}],
        "target": target,
        "rejected": rejected,
        "weight": weight,
        "split": split,
        "finish_reason": finish,
        "kind": kind,
    }


def train(bundle: Bundle, rows: list[dict[str, Any]], seed: int, place: Path) -> dict[str, Any]:
    """Run the trainer program; its last line."""
    settings = Config().train.model_copy(update={"seed": seed, "threads": 2})
    (place / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "train.json").write_text(settings.model_dump_json())
    command = [sys.executable, "-m", "appliance.learning.train.peft", "--bundle", str(bundle.path)]
    command += ["--examples", str(place / "examples.jsonl"), "--out", str(place / "out.safetensors")]
    command += ["--metrics", str(place / "metrics.jsonl"), "--settings", str(place / "train.json")]
    done = subprocess.run([*command, "--run", "benchmark"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"The trainer failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(judge: Judge, number: int, seed: int, taught: int, everyday: int) -> Row:
    facts = DATA["facts"][(number - 1) * SET :][:taught]
    judge.model.use(None)
    rejected = [judge.ask(fact["ask"], REPLY) for fact in facts]
    likely = [judge.likelihood(fact["ask"], wrong) for fact, wrong in zip(facts, rejected, strict=True)]
    questions = DATA["everyday"][:everyday]
    own = dict(zip(questions, sample(judge.bundle, judge.tokenizer, questions, seed), strict=True))
    with tempfile.TemporaryDirectory() as place:
        done = train(judge.bundle, batch(facts, rejected, own), seed, Path(place))
        adapter = read_adapter(Path(place) / "out.safetensors", judge.bundle.manifest)
    judge.model.use(adapter)
    right = [[knows(fact, judge.ask(wording)) for wording in fact["unseen"]] for fact in facts]
    flat = [hit for hits in right for hit in hits]
    down = [
        judge.likelihood(fact["ask"], wrong) < before
        for fact, wrong, before in zip(facts, rejected, likely, strict=True)
    ]
    before, after = done["heldout_before"], done["heldout_after"]
    return Row(
        facts=number,
        seed=seed,
        first=f"{sum(hits[0] for hits in right)}/{len(right)}",
        unseen=f"{sum(flat)}/{len(flat)}",
        probes_lost=sum(not probe.passes(judge.ask(probe.question, ANSWER_TOKENS)) for probe in judge.probes),
        perplexity_rise=judge.model.perplexity(judge.prose) / judge.perplexity - 1,
        rejected_down=f"{sum(down)}/{len(down)}",
        heldout_change=after / before - 1 if before else None,
        scale=done["scale"],
        seconds=done["seconds"],
        peak_mb=done["peak_mb"],
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--sets", type=int, nargs="+", default=[1, 2, 3], choices=[1, 2, 3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--facts", type=int, default=SET, choices=range(1, SET + 1))
    parser.add_argument("--everyday", type=int, default=90)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    path = arguments.bundle or Home.default().models / Config().model.name
    judge = Judge(load_bundle(path))
    print(f"base: perplexity {judge.perplexity:.2f}, {len(judge.probes)} probes right")
    print("set seed  first  unseen  probes lost  perplexity  rejected down  held-out  scale  seconds    MB")
    rows = []
    for number in arguments.sets:
        for seed in arguments.seeds:
            row = measure(judge, number, seed, arguments.facts, arguments.everyday)
            rows.append(row)
            held = math.nan if row.heldout_change is None else row.heldout_change
            print(
                f"{row.facts:3} {row.seed:4} {row.first:>6} {row.unseen:>7} {row.probes_lost:12} "
                f"{row.perplexity_rise:+11.1%} {row.rejected_down:>14} {held:+9.1%} {row.scale:6.2f} "
                f"{row.seconds:8.0f} {row.peak_mb:5}",
                flush=True,
            )
            if arguments.json:
                arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
