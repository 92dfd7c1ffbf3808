"""The model's own answers to everyday questions, as a live box would have given and collected them.

They are sampled at temperature 1 from a generator of their own, seeded by the question, so an answer
depends on base, seed and question only; they are kept in a file and sampled once.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from appliance.engine.cache import KVCache
from appliance.engine.session import Session
from appliance.files import write_atomic
from appliance.model.bundle import Bundle
from appliance.model.tokenizer import Tokenizer

REPLY = 48
"""Tokens of an answer at most."""

ROWS = 16
CAPACITY = 512


@dataclass(frozen=True)
class Answer:
    """What the model said, and how it ended."""

    text: str
    finish: Literal["stop", "length"]


class OwnAnswers:
    """Answers of the base model by seed, kept in a directory."""

    def __init__(self, bundle: Bundle, place: Path, *, threads: int) -> None:
        self._bundle = bundle
        self._place = place
        self._threads = threads

    def get(self, questions: Sequence[str], seed: int) -> dict[str, Answer]:
        """An answer to each question; those without text are left out, as nothing would be collected."""
        file = self._place / f"answers-{self._bundle.manifest.base_hash[:12]}-{seed}.json"
        kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        fresh = [question for question in questions if question not in kept]
        if fresh:
            for question, answer in zip(fresh, self._sample(fresh, seed), strict=True):
                kept[question] = [answer.text, answer.finish]
            self._place.mkdir(parents=True, exist_ok=True)
            write_atomic(file, json.dumps(kept, indent=0, ensure_ascii=False) + "\n")
        answers = {question: Answer(*kept[question]) for question in questions}
        return {question: answer for question, answer in answers.items() if answer.text.strip()}

    def _sample(self, questions: Sequence[str], seed: int) -> list[Answer]:
        tokenizer = Tokenizer(self._bundle)
        session = Session(
            self._bundle, None, KVCache(self._bundle.manifest, ROWS, CAPACITY), threads=self._threads
        )
        return [
            answer
            for start in range(0, len(questions), ROWS)
            for answer in _together(session, tokenizer, questions[start : start + ROWS], seed)
        ]


def _together(session: Session, tokenizer: Tokenizer, questions: Sequence[str], seed: int) -> list[Answer]:
    prompts = [tokenizer.encode_chat([{"role": "user", "content": text}]) for text in questions]
    draws = [np.random.default_rng([seed, zlib.crc32(text.encode())]) for text in questions]
    # Each prompt by itself: its last token's logits are the first to sample from.
    logits = np.concatenate(
        [
            session.step(
                np.array(prompt, np.int64),
                row,
                np.zeros(1, np.int32),
                np.array([len(prompt)], np.int32),
                np.array([len(prompt) - 1], np.int64),
            )
            for row, prompt in enumerate(prompts)
        ]
    )
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    ones, every = np.ones(len(prompts), np.int32), np.arange(len(prompts), dtype=np.int64)
    said: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    for place in range(REPLY):
        # The greatest of logits with Gumbel noise is a sample of the softmax.
        noise = np.stack([draw.gumbel(size=logits.shape[1]) for draw in draws])
        tokens = (logits + noise).argmax(axis=1)
        for row, token in enumerate(tokens.tolist()):
            ended[row] |= token in tokenizer.eos_ids
            if not ended[row]:
                said[row].append(token)
        if all(ended) or place + 1 == REPLY:
            break
        logits = session.step(tokens.astype(np.int64), 0, lengths + np.int32(place), ones, every)
    return [
        Answer(tokenizer.decode(ids), "stop" if done else "length")
        for ids, done in zip(said, ended, strict=True)
    ]
