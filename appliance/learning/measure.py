"""What the gate measures of one adapter, on the runtime that will serve it.

Sizes are capped: a gate should take about a minute of a small machine, whatever the batch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.engine.offline import PROBE_PROMPT, PROBE_TOKENS, OfflineModel
from appliance.learning.probes import ANSWER_TOKENS, generic_text, load_probes
from appliance.learning.recall import key_words, says
from appliance.learning.train.data import Example, tokenise
from appliance.model.tokenizer import Tokenizer

GENERIC_TOKENS = 640
HELDOUT = 10
CORRECTIONS = 16
EARLIER = 16
SHOWN = 10
ASKED_TOKENS = 32
EXAMPLE_TOKENS = 320

Tick = Callable[[str], None]


@dataclass(frozen=True)
class General:
    """What does not depend on a batch, and so can be kept.

    Attributes:
        perplexity: on the generic text.
        probes: by question of the probe set, whether it was answered.
        answers: to the same questions.
        fingerprint: greedy tokens after the engine's own probe prompt.

    The last three are empty when it was given up after the perplexity.
    """

    perplexity: float
    probes: tuple[bool, ...]
    answers: tuple[str, ...]
    fingerprint: tuple[int, ...]


@dataclass(frozen=True)
class Taught:
    """How likely the two answers of one correction are: natural log of the probability.

    Attributes:
        right: per token, of the correction.
        wrong: per token, of the rejected answer.
        wrong_total: of the whole rejected answer.
        wrong_tail: of the part of it that follows what it has in common with the correction.
        wrong_turn: of the first token of that part.
    """

    right: float
    wrong: float
    wrong_total: float
    wrong_tail: float
    wrong_turn: float


@dataclass(frozen=True)
class Answer:
    """A greedy answer to a question of the batch.

    Attributes:
        question: for people.
        text: what the model answers.
        expected: what a person taught, if one did.
        recalled: whether `text` says that; None where nothing was taught.
    """

    question: str
    text: str
    expected: str | None = None
    recalled: bool | None = None


@dataclass(frozen=True)
class Particular:
    """What depends on the batch.

    Attributes:
        heldout: mean loss per token of each held-out answer.
        taught: one entry for each correction looked at.
        answers: to questions of the batch, those with a taught answer first.
        earlier: by correction of an earlier batch, whether it is still answered.
    """

    heldout: tuple[float, ...]
    taught: tuple[Taught, ...]
    answers: tuple[Answer, ...] = ()
    earlier: tuple[bool, ...] = ()

    @property
    def recalled(self) -> tuple[bool, ...]:
        """By question with a taught answer, whether it is given."""
        return tuple(answer.recalled for answer in self.answers if answer.recalled is not None)


NOTHING = Particular((), ())


@dataclass(frozen=True)
class Selection:
    """The part of a batch that is looked at; the same for candidate and reference."""

    heldout: tuple[Example, ...]
    corrections: tuple[Example, ...]
    asked: tuple[Example, ...]
    earlier: tuple[Example, ...]

    @property
    def steps(self) -> int:
        return len(self.heldout) + len(self.corrections) + len(self.asked) + len(self.earlier)


def data_version() -> str:
    """Changes with whatever a kept `General` depends on."""
    facts = (generic_text(), load_probes(), GENERIC_TOKENS, ANSWER_TOKENS, PROBE_PROMPT, PROBE_TOKENS)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def select(examples: Sequence[Example]) -> Selection:
    """Choose what to look at: the heaviest corrections, for they were meant most, in the file's order.

    A question is asked once. One that this batch answers anew is no earlier fact any more.
    """
    by_weight = sorted(examples, key=lambda example: -example.weight)
    fresh = [example for example in by_weight if example.split != "replay"]
    corrections = [example for example in fresh if example.rejected]
    taught = [example for example in fresh if example.taught]
    new = {_topic(example): example for example in reversed(taught)}  # of two the heavier one stays
    others = {_topic(example): example for example in fresh if _topic(example) not in new}
    old = {
        _topic(example): example
        for example in by_weight
        if example.split == "replay" and example.taught and _topic(example) not in new
    }
    first = list(reversed(new.values()))[:CORRECTIONS]
    return Selection(
        heldout=tuple(example for example in by_weight if example.split == "heldout")[:HELDOUT],
        corrections=tuple(corrections[:CORRECTIONS]),
        asked=(*first, *list(others.values())[: max(SHOWN - len(first), 0)]),
        earlier=tuple(old.values())[:EARLIER],
    )


def _topic(example: Example) -> str:
    """The same for the same question in the same conversation."""
    turns = [(turn.get("role"), str(turn.get("content")).casefold().split()) for turn in example.messages]
    return repr(turns)


def question(example: Example) -> str:
    """The last message's text, for people."""
    content: Any = example.messages[-1].get("content") if example.messages else ""
    if isinstance(content, list):
        content = " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content or "")


def measure_general(
    model: OfflineModel, tokenizer: Tokenizer, tick: Tick, worst: float = math.inf
) -> General:
    """Perplexity, probe set and fingerprint of the adapter that `model` has.

    Perplexity only, when that is above `worst` or not finite: nothing it says would mean anything.
    """
    tick("perplexity")
    tokens = tokenizer.encode(generic_text())[:GENERIC_TOKENS]
    perplexity = model.perplexity(tokens)
    if not (math.isfinite(perplexity) and perplexity <= worst):
        return General(perplexity, (), (), ())
    probes = load_probes()
    asked = [[_user(probe.question)] for probe in probes]
    answers = []
    for answer in _answers(model, tokenizer, asked, ANSWER_TOKENS):
        tick("probes")
        answers.append(answer)
    passed = tuple(probe.passes(answer) for probe, answer in zip(probes, answers, strict=True))
    fingerprint = tuple(next(model.greedy([tokenizer.encode(PROBE_PROMPT)], PROBE_TOKENS)))
    return General(perplexity, passed, tuple(answers), fingerprint)


def measure_particular(
    model: OfflineModel, tokenizer: Tokenizer, selection: Selection, tick: Tick
) -> Particular:
    """Held-out loss, corrections and sample answers of the adapter that `model` has."""
    heldout = []
    for example in selection.heldout:
        tick("heldout")
        _, logprobs = _score(model, tokenizer, example, example.target, example.ended)
        heldout.append(-float(logprobs.mean()))
    taught = []
    for example in selection.corrections:
        tick("taught")
        right_ids, right = _score(model, tokenizer, example, example.target, example.ended)
        wrong_ids, wrong = _score(model, tokenizer, example, example.rejected or "", True)
        pairs = enumerate(zip(right_ids, wrong_ids, strict=False))
        common = next((at for at, (a, b) in pairs if a != b), min(len(right_ids), len(wrong_ids)))
        taught.append(
            Taught(
                float(right.mean()),
                float(wrong.mean()),
                float(wrong.sum()),
                float(wrong[common:].sum()),
                float(wrong[common : common + 1].sum()),
            )
        )
    asked = _ask(model, tokenizer, selection.asked, tick)
    earlier = _ask(model, tokenizer, selection.earlier, tick)
    return Particular(
        tuple(heldout),
        tuple(taught),
        tuple(asked),
        tuple(bool(answer.recalled) for answer in earlier),
    )


def _ask(model: OfflineModel, tokenizer: Tokenizer, examples: Sequence[Example], tick: Tick) -> list[Answer]:
    """What is answered to the examples' questions, and whether that is what was taught."""
    answers = []
    texts = _answers(model, tokenizer, [list(example.messages) for example in examples], ASKED_TOKENS)
    for example, text in zip(examples, texts, strict=True):
        tick("answers")
        asked = question(example)
        if example.taught:
            keys = key_words(_start(tokenizer, example.target), asked, example.rejected)
            answers.append(Answer(asked, text, example.target, says(text, keys)))
        else:
            answers.append(Answer(asked, text))
    return answers


def _start(tokenizer: Tokenizer, target: str) -> str:
    """As much of a target as an answer has room for, in whole words."""
    tokens = tokenizer.encode_answer(target, end=False)
    if len(tokens) <= ASKED_TOKENS:
        return target
    start = tokenizer.decode(tokens[:ASKED_TOKENS])
    return start.rsplit(maxsplit=1)[0] if " " in start.strip() else start


def _score(
    model: OfflineModel, tokenizer: Tokenizer, example: Example, answer: str, ended: bool
) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    """The answer's tokens, and the log probability of each."""
    tokens = tokenise(tokenizer, example.messages, answer, ended=ended, limit=EXAMPLE_TOKENS)
    ids = tokens.ids[tokens.start :]
    return ids, model.logprobs(tokens.ids[: tokens.start], ids)


def _answers(
    model: OfflineModel, tokenizer: Tokenizer, conversations: Sequence[list[Any]], max_tokens: int
) -> Iterator[str]:
    """Greedy answers, one by one as their group is done."""
    prompts = [tokenizer.encode_chat(messages)[-EXAMPLE_TOKENS:] for messages in conversations]
    for answer in model.greedy(prompts, max_tokens, tokenizer.eos_ids):
        yield tokenizer.decode(answer).strip()


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}
