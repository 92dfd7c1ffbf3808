"""The frozen batch of a run as token sequences."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from appliance.model.tokenizer import Tokenizer

Split = Literal["train", "heldout", "replay"]
TAUGHT_KINDS = frozenset({"correction", "critique"})


@dataclass(frozen=True)
class Example:
    """One line of `examples.jsonl`.

    Attributes:
        messages: the conversation up to, not including, the answer.
        target: the answer to learn.
        rejected: the answer that was corrected, if one was.
        ended: the target ends its turn; false when it was cut off by the token limit.
    """

    id: str
    messages: tuple[Mapping[str, Any], ...]
    target: str
    rejected: str | None
    weight: float
    split: Split
    ended: bool
    kind: str

    @property
    def taught(self) -> bool:
        """A person said what is right here; the other kinds are the model's own answers."""
        return self.kind in TAUGHT_KINDS

    @property
    def query(self) -> str | None:
        """The text of the last message, when it is plain text of the user."""
        last = self.messages[-1] if self.messages else {}
        content = last.get("content")
        return content if last.get("role") == "user" and isinstance(content, str) else None

    def reworded(self, query: str, before: Sequence[Mapping[str, Any]] = ()) -> list[Mapping[str, Any]]:
        """The conversation with another last message, after other earlier messages."""
        return [*before, *self.messages[:-1], {**self.messages[-1], "content": query}]


@dataclass(frozen=True)
class Tokens:
    """Tokens to run, of which those from `start` on are the answer."""

    ids: tuple[int, ...]
    start: int

    @property
    def answer(self) -> int:
        return len(self.ids) - self.start


def common_prefix(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The tokens that a conversation without a system message of its own begins with."""
    one, other = (tokenizer.encode_chat([{"role": "user", "content": text}]) for text in ("Hi", "Who?"))
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return tuple(ident for ident, _ in same)


def load_examples(path: Path) -> list[Example]:
    """Read `examples.jsonl`.

    Raises:
        ValueError: a line is not an example; the message has its number.
    """
    examples = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                examples.append(
                    Example(
                        id=str(row["id"]),
                        messages=tuple(row["messages"]),
                        target=str(row["target"]),
                        rejected=row.get("rejected") or None,
                        weight=float(row["weight"]),
                        split=row.get("split", "train"),
                        ended=row.get("finish_reason", "stop") != "length",
                        kind=row.get("kind", "automatic"),
                    )
                )
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path.name}, line {number}: not an example ({error!r})") from error
    return examples


def tokenise(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], answer: str, *, ended: bool, limit: int
) -> Tokens:
    """Prompt and answer as tokens; too long a prompt loses its oldest tokens, then the answer its last."""
    prompt = tokenizer.encode_chat(list(messages), add_generation_prompt=True)
    target = tokenizer.encode_answer(answer, end=ended)
    target = target[: max(limit - 1, 1)]
    prompt = prompt[-max(limit - len(target), 1) :]
    return Tokens((*prompt, *target), len(prompt))
