"""How good and how fast a model is on this box. A child program.

    python -m appliance.learning.figures --bundle DIR --out figures.json [--threads N]

Quality is what the gate looks at, of base: perplexity on the generic text, and the probe set. Speed is
that of one request alone, on the session code that serves. Whatever else the box does meanwhile only
makes a step slower, and the program may stand still in the middle of one: so of equal steps the median
counts.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from appliance.engine.cache import KVCache
from appliance.engine.offline import CHUNK, OfflineModel
from appliance.engine.session import Session
from appliance.errors import ShammahError, Unavailable
from appliance.files import in_words, write_atomic
from appliance.hardware import default_threads
from appliance.learning.measure import GENERIC_TOKENS, General, measure_general
from appliance.learning.probes import generic_text, load_probes
from appliance.logs import configure_child
from appliance.model.bundle import Bundle, load_bundle
from appliance.model.tokenizer import Tokenizer

FIGURES = "figures.json"
"""Beside the bundle's own files, and gone with them."""

PROMPT_CHUNKS = 4
PROMPTS = 3
ANSWER_TOKENS = 48
SHORT_TOKENS = 64
QUESTIONS = 5
QUESTION = "What is the capital of France?"
ROOM = 2  # places after a sequence that a step may overwrite


@dataclass(frozen=True)
class Figures:
    """What was measured.

    Attributes:
        base_hash: of what.
        at: when, in Unix time.
        cores: that this box has.
        threads: that computed.
        prefill: prompt tokens computed in a second.
        decode: tokens generated in a second.
        first_token: seconds from a short question to the first token of its answer.
        perplexity: on the generic text; says nothing about a model with other tokens.
        bits: per character of that text; can be compared with any model's.
        passed: questions of the probe set that it answers; None for a model that cannot chat.
        asked: questions there are.
    """

    base_hash: str
    at: float
    cores: int
    threads: int
    prefill: float
    decode: float
    first_token: float
    perplexity: float
    bits: float
    passed: int | None
    asked: int


def read_figures(bundle: Bundle) -> Figures | None:
    """What was measured of a bundle on this box; None when nothing was."""
    try:
        found = Figures(**json.loads((bundle.path / FIGURES).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    # A directory that came from another box, or was imported anew, may have another's.
    fits = found.base_hash == bundle.manifest.base_hash and found.cores == _cores()
    return found if fits else None


def measure(bundle: Bundle, threads: int, report: Callable[[str, float], None]) -> Figures:
    """Measure it.

    Raises:
        Unavailable: it cannot be loaded, or gives numbers that are not finite.
    """
    tokenizer = Tokenizer(bundle)
    report("Loading the model", 0.02)
    prefill, decode, first_token = _speed(bundle, tokenizer, threads, report)
    general, bits = _quality(bundle, tokenizer, threads, report)
    return Figures(
        base_hash=bundle.manifest.base_hash,
        at=time.time(),
        cores=_cores(),
        threads=threads or default_threads(),
        prefill=prefill,
        decode=decode,
        first_token=first_token,
        perplexity=general.perplexity,
        bits=bits,
        passed=sum(general.probes) if general.probes else None,
        asked=len(load_probes()),
    )


def _speed(
    bundle: Bundle, tokenizer: Tokenizer, threads: int, report: Callable[[str, float], None]
) -> tuple[float, float, float]:
    context = bundle.manifest.context_length
    text = tokenizer.encode(generic_text())
    wanted = min(CHUNK * PROMPT_CHUNKS, len(text), context - ANSWER_TOKENS - ROOM)
    if wanted < 1:
        raise Unavailable(f"A context of {context} tokens is too short to measure anything.")
    prompt = text[:wanted]
    cache = KVCache(bundle.manifest, 1, wanted + ANSWER_TOKENS + ROOM)
    session = Session(bundle, None, cache, threads=threads)

    def read(tokens: Sequence[int]) -> int:
        token = 0
        for start in range(0, len(tokens), CHUNK):
            chunk = tokens[start : start + CHUNK]
            last = start + CHUNK >= len(tokens)
            logits = _step(session, start, chunk, [len(chunk) - 1] if last else [])
            token = int(logits[0].argmax()) if last else 0
        return token

    def timed(tokens: Sequence[int]) -> float:
        began = time.perf_counter()
        read(tokens)
        return time.perf_counter() - began

    read(prompt[:8])  # the first step of a session also prepares it
    report("Measuring how fast it reads", 0.05)
    reading = statistics.median(timed(prompt) for _ in range(PROMPTS))
    report("Measuring how fast it answers", 0.12)
    question = _question(bundle, tokenizer)[-wanted:]
    first = statistics.median(timed(question) for _ in range(QUESTIONS))
    steps = _answer(session, len(prompt), read(prompt), ANSWER_TOKENS)
    return len(prompt) / reading, 1 / statistics.median(steps), first


def decode_speed(bundle: Bundle, threads: int) -> float:
    """Tokens a second of a short answer: some seconds with a model of some GB, most of it to load that.

    Of the steps a fast one counts, not the median: that of a box that does nothing else meanwhile.

    Raises:
        Unavailable: it cannot be loaded.
    """
    cache = KVCache(bundle.manifest, 1, SHORT_TOKENS + ROOM + 1)
    session = Session(bundle, None, cache, threads=threads)
    token = int(_step(session, 0, [0], [0])[0].argmax())
    return 1 / sorted(_answer(session, 1, token, SHORT_TOKENS))[SHORT_TOKENS // 10]


def _answer(session: Session, start: int, token: int, count: int) -> list[float]:
    """Generate so many tokens; the seconds that each took."""
    steps = []
    for place in range(start, start + count):
        began = time.perf_counter()
        token = int(_step(session, place, [token], [0])[0].argmax())
        steps.append(time.perf_counter() - began)
    return steps


def _quality(
    bundle: Bundle, tokenizer: Tokenizer, threads: int, report: Callable[[str, float], None]
) -> tuple[General, float]:
    model = OfflineModel(bundle, threads=threads, capacity=GENERIC_TOKENS + 64)
    probes, done = len(load_probes()), 0

    def tick(phase: str) -> None:
        nonlocal done
        stage = "Reading a text" if phase == "perplexity" else f"Asking {probes} questions"
        report(stage, 0.2 + 0.8 * done / (probes + 1))
        done += 1

    tokens = tokenizer.encode(generic_text())[:GENERIC_TOKENS]
    if bundle.manifest.chat_template:
        general = measure_general(model, tokenizer, tick)
    else:
        tick("perplexity")
        general = General(model.perplexity(tokens), (), (), ())
    if not math.isfinite(general.perplexity):
        raise Unavailable("The model gives numbers that are not finite.")
    # As many tokens are scored as there are but for the first of each window; their share of the text.
    bits = math.log2(general.perplexity) * (len(tokens) - 1) / len(tokenizer.decode(tokens[1:]))
    return general, bits


def _step(session: Session, place: int, tokens: Sequence[int], wanted: Sequence[int]) -> np.ndarray:
    return session.step(
        np.array(tokens, np.int64),
        0,
        np.array([place], np.int32),
        np.array([len(tokens)], np.int32),
        np.array(wanted, np.int64),
    )


def _question(bundle: Bundle, tokenizer: Tokenizer) -> list[int]:
    if bundle.manifest.chat_template:
        return tokenizer.encode_chat([{"role": "user", "content": QUESTION}])
    return tokenizer.encode(QUESTION)


def _cores() -> int:
    return os.cpu_count() or 1


def main(argv: Sequence[str] | None = None) -> int:
    """The program."""
    parser = argparse.ArgumentParser(prog="figures", description="Measure a model.")
    parser.add_argument("--bundle", type=Path, required=True, help="the model")
    parser.add_argument("--out", type=Path, required=True, help="where the figures go")
    parser.add_argument("--threads", type=int, default=0, help="0 for as many as serving takes")
    args = parser.parse_args(argv)

    def say(**event: object) -> None:
        print(json.dumps(event), flush=True)

    try:
        found = measure(
            load_bundle(args.bundle),
            args.threads,
            lambda stage, fraction: say(event="step", stage=stage, fraction=fraction),
        )
        write_atomic(args.out, json.dumps(asdict(found), allow_nan=False))
    except (ShammahError, OSError, ValueError) as error:
        say(event="error", message=in_words(error))
        return 1
    return 0


if __name__ == "__main__":
    configure_child()
    sys.exit(main())
