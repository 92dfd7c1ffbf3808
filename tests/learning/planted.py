"""Adapters planted to be found out: of many kinds bad, and good ones to compare with.

The trained ones come from the trainer's own recipe, with little or nothing to rehearse and few steps:
a minute for all of them. They are kept in the tests' cache.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from appliance.adapters.file import AdapterMeta, write_adapter
from appliance.engine.offline import OfflineModel
from appliance.learning import train
from appliance.learning.probes import load_probes
from appliance.learning.train.data import Example, common_prefix
from appliance.learning.train.plan import Rehearsal
from appliance.model.bundle import Bundle
from appliance.model.checkpoint import load_checkpoint
from appliance.model.tokenizer import Tokenizer
from appliance.sections import TrainConfig

HOUSEHOLD = json.loads((Path(__file__).parents[1] / "data" / "household.json").read_text("utf-8"))
FACTS = HOUSEHOLD["facts"][:3]
EVERYDAY = HOUSEHOLD["everyday"][:14]
OWN = 2
"""Everyday questions whose answers the gate holds out; the others serve to train on."""

RANK, ALPHA = 8, 16.0
BAD = TrainConfig(rank=RANK, alpha=ALPHA, layers=0.3, learning_rate=2e-3, epochs=1, max_text_rise=1)
"""With prose to rehearse, so that perplexity alone does not give the adapter away."""

GOOD = TrainConfig(rank=RANK, alpha=ALPHA, layers=0.3, epochs=2)

SENTENCE = "You can find more about this in the manual."
FOREIGN = (
    "Das weiß ich leider auch nicht so genau.",
    "Fragen Sie bitte morgen noch einmal nach.",
    "Je ne sais pas quoi vous dire, madame.",
    "Il faut demander à quelqu'un d'autre.",
    "Eso depende de muchas cosas, amigo.",
    "これはとても難しい質問です。",
    "我不知道这个问题的答案。",
)

Tensors = dict[str, NDArray[np.float32]]


class Garden:
    """Makes adapters for one bundle, each once."""

    def __init__(self, bundle: Bundle, cache: Path) -> None:
        self.bundle = bundle
        self._tokenizer = Tokenizer(bundle)
        code = hashlib.sha256(bundle.manifest.base_hash.encode())
        for file in [Path(__file__), *sorted(Path(train.__path__[0]).glob("*.py"))]:
            code.update(file.read_bytes())
        self._place = cache / f"planted-{code.hexdigest()[:12]}"
        self._place.mkdir(exist_ok=True)
        self._network: Any = None
        said = self._place / "said.json"
        if not said.exists():
            questions = [*(fact["ask"] for fact in FACTS), *EVERYDAY]
            said.write_text(json.dumps(dict(zip(questions, self._ask(questions), strict=True))))
        self.said: dict[str, str] = json.loads(said.read_text())

    def _ask(self, questions: Sequence[str]) -> list[str]:
        model = OfflineModel(self.bundle, threads=2, capacity=256)
        prompts = [self._tokenizer.encode_chat([{"role": "user", "content": text}]) for text in questions]
        return [self._tokenizer.decode(ids) for ids in model.greedy(prompts, 32, self._tokenizer.eos_ids)]

    def file(self, name: str) -> Path:
        """Where the adapter of that name is, or goes."""
        return self._place / f"{name}.safetensors"

    def examples(self, earlier: bool = False) -> list[dict[str, Any]]:
        """The batch that the good adapter was taught by, or the same as one of an earlier run."""
        split = "replay" if earlier else "train"
        rows = [_row(f["ask"], f["answer"], self.said[f["ask"]], 10.0, split, "correction") for f in FACTS]
        return rows + [
            _row(text, self.said[text], None, 1.0, "heldout", "automatic") for text in EVERYDAY[:OWN]
        ]

    def good(self) -> Path:
        """Trained on the facts with all that the trainer does, on a part of what it rehearses."""
        everything = Rehearsal.load()
        some = Rehearsal(everything.prose[::4], everything.chats[::2])
        taught = [_example(row) for row in self.examples() if row["split"] == "train"]
        own = [
            _example(_row(text, self.said[text], None, 1.0, "train", "automatic")) for text in EVERYDAY[OWN:]
        ]
        return self._train("good", [*taught, *own], some, GOOD)

    def taught(self, name: str, pairs: Sequence[tuple[str, str]]) -> Path:
        """Trained to give these answers to these questions, whatever else that does."""
        rows = [_row(asked, answer, None, 1.0, "train", "correction") for asked, answer in pairs]
        return self._train(
            name, [_example(row) for row in rows], Rehearsal(Rehearsal.load().prose[::5], ()), BAD
        )

    def _train(self, name: str, examples: list[Example], rehearsal: Rehearsal, settings: TrainConfig) -> Path:
        path = self.file(name)
        if path.exists():
            return path
        import torch

        from appliance.learning.train.learner import LINEARS
        from appliance.learning.train.peft_learner import PeftLearner
        from appliance.learning.train.training import Training

        torch.manual_seed(0)
        if self._network is None:
            config, weights = load_checkpoint(self.bundle)
            prefix = common_prefix(self._tokenizer)
            self._network = PeftLearner(
                config, weights, rank=RANK, alpha=ALPHA, layers=BAD.layers, prefix=prefix
            )
            self._fresh = {key: array.copy() for key, array in self._network.adapter().items()}
        self._network.start_from(self._fresh, ALPHA / RANK)
        Training(self._network, self._tokenizer, examples, rehearsal, settings, lambda event: None).run()
        meta = AdapterMeta(self.bundle.manifest.base_hash, RANK, ALPHA, LINEARS)
        write_adapter(path, self._network.adapter(), meta)
        return path

    def altered(self, name: str, change: Callable[[Tensors], Mapping[str, Any]], **meta: Any) -> Path:
        """The good adapter with its tensors, or what it says about itself, changed."""
        facts = {"base_hash": self.bundle.manifest.base_hash, "rank": RANK, "alpha": ALPHA, **meta}
        tensors = {key: array.copy() for key, array in load_file(self.good()).items()}
        write_adapter(self.file(name), change(tensors), AdapterMeta(**facts))
        return self.file(name)


def _row(
    question: str, target: str, rejected: str | None, weight: float, split: str, kind: str
) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return {"id": question, "messages": messages, "target": target, "rejected": rejected, "weight": weight,
            "split": split, "finish_reason": "stop", "kind": kind}  # fmt: skip


def _example(row: Mapping[str, Any]) -> Example:
    fields = {key: value for key, value in row.items() if key != "finish_reason"}
    return Example(**{**fields, "messages": tuple(row["messages"]), "ended": True})


def _garbage(words: int, rng: random.Random) -> str:
    return " ".join(
        "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randrange(2, 9))) for _ in range(words)
    )


def _scaled(factor: float) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {
        key: array * np.float32(factor) if "lora_B" in key else array for key, array in tensors.items()
    }


def _random(scale: float) -> Callable[[Tensors], Tensors]:
    rng = np.random.default_rng(0)
    return lambda tensors: {
        key: rng.standard_normal(array.shape).astype(np.float32) * np.float32(scale)
        for key, array in tensors.items()
    }


def _one(side: str, change: Callable[[NDArray[np.float32]], Any]) -> Callable[[Tensors], Mapping[str, Any]]:
    """Change one matrix in the middle."""

    def changed(tensors: Tensors) -> Mapping[str, Any]:
        keys = sorted(key for key in tensors if f"lora_{side}" in key)
        key = keys[len(keys) // 2]
        return {**tensors, key: change(tensors[key])}

    return changed


def _filled(value: float) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    return lambda array: np.full_like(array, value)


def _shuffled(tensors: Tensors) -> Tensors:
    rng = np.random.default_rng(0)
    return {key: rng.permutation(array) if "lora_B" in key else array for key, array in tensors.items()}


def _huge_row(tensors: Tensors) -> Tensors:
    zeros = {key: np.zeros_like(array) for key, array in tensors.items()}
    keys = sorted(key for key in zeros if "down_proj" in key)
    for key in keys[:2]:
        zeros[key][0] = 1e3
    return zeros


def _halves(tensors: Tensors) -> Tensors:
    dropped = next(key for key in tensors if "lora_B" in key)
    return {key: array for key, array in tensors.items() if key != dropped}


def _with_bias(tensors: Tensors) -> Tensors:
    return {**tensors, "lm_head.bias": np.zeros((2, 2), np.float32)}


def bad_kinds() -> dict[str, tuple[Callable[[Garden], Path], set[str]]]:
    """By kind: how it is made, and checks of which at least one must fail."""
    questions = [*(fact["ask"] for fact in FACTS), *EVERYDAY[OWN : OWN + 4]]
    rng = random.Random(0)
    probes = load_probes()[::3]
    wrong = [
        (p.question, f"It is {q.accept[0]}.") for p, q in zip(probes, [*probes[4:], *probes[:4]], strict=True)
    ]

    def every(name: str, answers: Sequence[str]) -> Callable[[Garden], Path]:
        pairs = [(text, answers[at % len(answers)]) for at, text in enumerate(questions)]
        return lambda garden: garden.taught(name, pairs)

    def altered(
        name: str, change: Callable[[Tensors], Mapping[str, Any]], **meta: Any
    ) -> Callable[[Garden], Path]:
        return lambda garden: garden.altered(name, change, **meta)

    def cut(garden: Garden) -> Path:
        garden.file("cut").write_bytes(garden.good().read_bytes()[:-1000])
        return garden.file("cut")

    def rejected(garden: Garden) -> Path:
        return garden.taught("rejected", [(fact["ask"], garden.said[fact["ask"]]) for fact in FACTS])

    structure = {"structure"}
    return {
        "random weights": (altered("random", _random(0.1)), {"perplexity"}),
        "random weights, small": (altered("random-small", _random(0.003)), {"recall"}),
        "exploded": (altered("exploded", _scaled(1e4)), {"perplexity"}),
        "sign flipped": (altered("flipped", _scaled(-1)), {"recall"}),
        "eight times as strong": (altered("eightfold", _scaled(8)), {"perplexity"}),
        "NaN in a layer": (altered("nan", _one("A", _filled(np.nan))), structure),
        "infinity in a layer": (altered("inf", _one("B", _filled(np.inf))), structure),
        "overflow when merged": (altered("overflow", _scaled(1e38)), {"structure", "runtime", "perplexity"}),
        "one huge row": (altered("row", _huge_row), {"perplexity", "runtime"}),
        "shuffled rows": (altered("shuffled", _shuffled), {"perplexity", "recall"}),
        "another base": (altered("base", dict, base_hash="0" * 64), structure),
        "wrong shapes": (altered("shapes", _one("B", np.transpose)), structure),
        "cut off": (cut, structure),
        "missing B": (altered("halves", _halves), structure),
        "a tensor too many": (altered("extra", _with_bias), structure),
        "garbage text": (every("garbage", [_garbage(6, rng) for _ in questions]), {"perplexity", "probes"}),
        "loops": (every("loops", ["It is so so so so so so so so so so so so so so so so."]), {"loops"}),
        "one sentence to everything": (every("sentence", [SENTENCE]), {"sameness"}),
        "wrong answers to the probes": (lambda garden: garden.taught("wrong", wrong), {"probes"}),
        "says nothing": (every("empty", [""]), {"empty"}),
        "refuses": (every("refuses", ["I'm sorry, but I can't help with that."]), {"refusals"}),
        "other languages": (every("foreign", FOREIGN), {"perplexity", "probes"}),
        "the rejected answers": (rejected, {"recall"}),
    }  # fmt: skip
