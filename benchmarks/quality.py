"""How much quality the bundle keeps: the served ONNX model against the fp32 checkpoint it came from.

    python benchmarks/quality.py [--bundle DIR] [--checkpoint DIR] [--json FILE]

Without arguments it imports the default model afresh and makes the fp32 checkpoint from the same
GGUF (some minutes). It prints a table and, with `--json`, writes the same numbers; the exit code is 1
when the bar is missed:

* perplexity on `appliance/learning/data/generic.txt` within 1% of fp32;
* greedy answers to the fixed prompts equal wherever fp32 is decisive, that is, at every token up to
  the first at which fp32's two likeliest tokens are less than `DECISIVE` nats apart.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers import logging as transformers_logging

from appliance.engine.cache import KVCache
from appliance.engine.session import Session
from appliance.home import Home
from appliance.model.bundle import Bundle, load_bundle
from appliance.model.convert import gguf_to_checkpoint
from appliance.model.importer import import_model
from appliance.model.source import DEFAULT, resolve
from appliance.model.tokenizer import Tokenizer

TEXT = Path(__file__).parents[1] / "appliance" / "learning" / "data" / "generic.txt"
BAR = 0.01
DECISIVE = 0.5
ANSWER = 24
CHUNK = 128
PROMPTS = (
    "What is the capital of France?",
    "What is the largest planet in our solar system?",
    "How many days are there in a week?",
    "What is 2 + 2?",
    "Who wrote Romeo and Juliet?",
    "Name the four seasons.",
    "What color is the sky on a clear day?",
    "Translate 'good morning' into Spanish.",
    "What is the opposite of hot?",
    "How do I boil an egg?",
    "Give me three tips for sleeping better.",
    "Write a short greeting for a birthday card.",
    "What should I cook for dinner tonight?",
    "How often should I water a cactus?",
    "Why do leaves change color in autumn?",
    "Explain what a computer does to a child.",
    "How do I remove a coffee stain from a shirt?",
    "What is the boiling point of water?",
    "Suggest a name for a black cat.",
    "Write a polite message saying that I will be late.",
    "What is photosynthesis?",
    "Remind me what the days of the weekend are called.",
)

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Greedy:
    """One prompt's comparison: fp32 decides `decided` tokens, the bundle says the first `equal` too."""

    prompt: str
    decided: int
    equal: int


@dataclass(frozen=True)
class Report:
    """What was measured."""

    tokens: int
    perplexity_fp32: float
    perplexity_bundle: float
    kl: float
    top1_agreement: float
    greedy: tuple[Greedy, ...]

    @property
    def ratio(self) -> float:
        return self.perplexity_bundle / self.perplexity_fp32

    @property
    def greedy_equal(self) -> bool:
        return all(item.equal == item.decided for item in self.greedy)

    @property
    def passed(self) -> bool:
        return abs(self.ratio - 1) <= BAR and self.greedy_equal


def served_logits(session: Session, tokens: list[int]) -> Logits:
    """Logits of every position, by the session that serves."""
    rows = []
    for start in range(0, len(tokens), CHUNK):
        chunk = np.array(tokens[start : start + CHUNK], np.int64)
        place, count = np.array([start], np.int32), np.array([len(chunk)], np.int32)
        rows.append(session.step(chunk, 0, place, count, np.arange(len(chunk))))
    return np.concatenate(rows)


def fp32_logits(model: PreTrainedModel, tokens: list[int]) -> Logits:
    """Logits of every position, by the checkpoint."""
    with torch.inference_mode():
        return model(torch.tensor([tokens])).logits[0].float().numpy()


def log_softmax(logits: Logits) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def decided_answer(model: PreTrainedModel, prompt: list[int], eos_ids: tuple[int, ...]) -> list[int]:
    """fp32's greedy answer, as far as every token of it is decided."""
    answer: list[int] = []
    fresh, past = prompt, None
    while len(answer) < ANSWER:
        with torch.inference_mode():
            out = model(torch.tensor([fresh]), past_key_values=past, use_cache=True, logits_to_keep=1)
        best, second = out.logits[0, -1].topk(2).values.tolist()
        token = int(out.logits[0, -1].argmax())
        if best - second < DECISIVE:
            break
        answer.append(token)
        if token in eos_ids:
            break
        fresh, past = [token], out.past_key_values
    return answer


def compare_greedy(session: Session, model: PreTrainedModel, tokenizer: Tokenizer, prompt: str) -> Greedy:
    """How much of fp32's decided greedy answer the bundle gives as well."""
    ids = tokenizer.encode_chat([{"role": "user", "content": prompt}])
    answer = decided_answer(model, ids, tokenizer.eos_ids)
    served = served_logits(session, ids + answer)[len(ids) - 1 : len(ids) + len(answer) - 1].argmax(axis=1)
    same = served == np.array(answer, np.int64)
    return Greedy(prompt, len(answer), len(answer) if same.all() else int(same.argmin()))


def measure(bundle: Bundle, checkpoint: Path, threads: int = 0) -> Report:
    """Compare `bundle` with the fp32 `checkpoint` directory."""
    tokenizer = Tokenizer(bundle)
    tokens = tokenizer.encode_prompt(TEXT.read_text(encoding="utf-8"))
    session = Session(bundle, None, KVCache(bundle.manifest, 1, len(tokens)), threads=threads)
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, local_files_only=True
    ).eval()
    targets = np.array(tokens[1:])
    reference = log_softmax(fp32_logits(model, tokens)[:-1])
    served = log_softmax(served_logits(session, tokens)[:-1])
    rows = np.arange(len(targets))
    return Report(
        tokens=len(targets),
        perplexity_fp32=float(np.exp(-reference[rows, targets].mean())),
        perplexity_bundle=float(np.exp(-served[rows, targets].mean())),
        kl=float((np.exp(reference) * (reference - served)).sum(axis=1).mean()),
        top1_agreement=float((reference.argmax(axis=1) == served.argmax(axis=1)).mean()),
        greedy=tuple(compare_greedy(session, model, tokenizer, prompt) for prompt in PROMPTS),
    )


def default_checkpoint(out: Path) -> Path:
    """Write the default model's GGUF to `out` as an fp32 checkpoint."""
    gguf = resolve(DEFAULT).path
    assert gguf is not None
    gguf_to_checkpoint(gguf, out)
    return out


def table(report: Report) -> str:
    lines = [
        f"{'':34}{'fp32':>10}{'bundle':>10}",
        f"{f'perplexity, {report.tokens} tokens':34}{report.perplexity_fp32:>10.3f}"
        f"{report.perplexity_bundle:>10.3f}   {report.ratio - 1:+.2%} (bar: {BAR:.0%})",
        f"{'KL(fp32 || bundle), nats':34}{'':>10}{report.kl:>10.5f}",
        f"{'likeliest token agrees':34}{'':>10}{report.top1_agreement:>10.1%}",
        "",
        f"{'greedy tokens while fp32 is decisive':56}{'decided':>8}{'equal':>8}",
        *(f"{item.prompt:56}{item.decided:>8}{item.equal:>8}" for item in report.greedy),
        "",
        "passed" if report.passed else "FAILED",
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, help="bundle directory (default: the default model)")
    parser.add_argument("--checkpoint", type=Path, help="fp32 checkpoint directory it was imported from")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as temp:
        bundle = load_bundle(options.bundle) if options.bundle else import_model(DEFAULT, Home(Path(temp)))
        checkpoint = options.checkpoint or default_checkpoint(Path(temp) / "fp32")
        report = measure(bundle, checkpoint, options.threads)
    print(table(report))
    if options.json:
        data = {
            **asdict(report),
            "ratio": report.ratio,
            "passed": report.passed,
            "base": bundle.manifest.base_hash,
        }
        options.json.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
