"""The frozen input of a run: which examples it trains on, which it is judged by, which it repeats.

The file `examples.jsonl` has one object a line:
`{"id", "messages", "target", "rejected", "weight", "split", "finish_reason", "kind"}`, with `split`
one of "train", "heldout", "replay" and `rejected` null except for corrections and critiques.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from appliance.files import write_atomic
from appliance.store.examples import Example

Split = Literal["train", "heldout", "replay"]
TAUGHT = ("correction", "critique")
"""Kinds in which a person said what is right. These are always trained, never held out."""


@dataclass(frozen=True)
class Batch:
    """What went into the file."""

    train: int
    heldout: int
    replay: int


@dataclass(frozen=True)
class Frozen:
    """Of a line of the file: which example, and what it is there for."""

    id: str
    split: Split


def freeze_batch(
    path: Path, held: Sequence[Example], replay: Sequence[Example], share: float, seed: int
) -> Batch:
    """Write `examples.jsonl` in one step.

    Args:
        path: the file.
        held: the examples of this run.
        replay: a sample of what was learned before.
        share: part of `held` to keep out of training.
        seed: decides which.
    """
    heldout = choose_heldout(held, share, seed)
    lines = [_line(example, "heldout" if example.id in heldout else "train") for example in held]
    lines += [_line(example, "replay") for example in replay]
    write_atomic(path, "".join(f"{line}\n" for line in lines))
    return Batch(train=len(held) - len(heldout), heldout=len(heldout), replay=len(replay))


def read_frozen(path: Path, limit: int | None = None, offset: int = 0) -> list[Frozen]:
    """What is in the file, or a page of it; nothing when it is not there (any more)."""
    found = []
    with suppress(FileNotFoundError), path.open(encoding="utf-8", errors="replace") as file:
        for line in islice(file, offset, None if limit is None else offset + limit):
            with suppress(ValueError, KeyError, TypeError):  # nobody but us writes it, yet it is a file
                entry = json.loads(line)
                found.append(Frozen(str(entry["id"]), entry["split"]))
    return found


def choose_heldout(examples: Sequence[Example], share: float, seed: int) -> set[str]:
    """Ids to keep out of training; the same for the same examples and seed.

    Only the model's own answers are held out, what people taught is too precious. At least one
    example remains to be trained.
    """
    own = [example for example in examples if example.kind not in TAUGHT]
    ids = [example.id for example in sorted(own, key=lambda example: (example.created, example.id))]
    count = min(round(share * len(examples)), len(ids), len(examples) - 1)
    return set(random.Random(seed).sample(ids, max(count, 0)))


def trainable(example: Example) -> bool:
    """Whether there is something to learn from it, and nobody has to look at it first."""
    return bool(example.target) and bool(example.messages) and example.weight > 0 and not example.drafted


def _line(example: Example, split: Split) -> str:
    return json.dumps(
        {
            "id": example.id,
            "messages": example.messages,
            "target": example.target,
            "rejected": example.response if example.kind in TAUGHT else None,
            "weight": example.weight,
            "split": split,
            "finish_reason": example.finish_reason,
            "kind": example.kind,
        },
        ensure_ascii=False,
    )
