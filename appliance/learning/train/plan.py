"""What is visited when: the example weights become visits, the visits become steps.

An example of weight w counts w times in the objective. A taught one spends its weight on visits
(each in another wording) and only what visits cannot express on the loss, which keeps the objective
and teaches far more than one wording with a large gradient. Automatic examples are the model's own
answers: there is nothing to learn from them but not to change, so they are visited least.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources

from appliance.learning.train.data import Example, Tokens, tokenise
from appliance.learning.train.wording import reword
from appliance.model.tokenizer import Tokenizer

SYSTEMS = ("You are a helpful assistant.", "You are the assistant of this household.", "Answer briefly.")

REJECTED_TOKENS = 8  # a rejected answer is pushed down where it goes wrong, not to its end
OWN_TOKENS = 48
TEXT_TOKENS = 96


@dataclass(frozen=True)
class Rehearsal:
    """Text that stands for all that the model shall not unlearn."""

    prose: tuple[str, ...]
    chats: tuple[tuple[str, str], ...]

    @classmethod
    def load(cls) -> Rehearsal:
        """What comes with the appliance."""
        data = resources.files("appliance.learning").joinpath("data")
        prose = data.joinpath("rehearsal.txt").read_text(encoding="utf-8").strip().split("\n\n")
        lines = data.joinpath("rehearsal_chat.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        return cls(tuple(prose), tuple((row["question"], row["answer"]) for row in rows))

    def split(self) -> tuple[Rehearsal, Rehearsal]:
        """Three quarters to rehearse, and one to judge by."""
        judge = Rehearsal(self.prose[3::4], self.chats[3::4])
        return Rehearsal(
            tuple(text for text in self.prose if text not in judge.prose),
            tuple(chat for chat in self.chats if chat not in judge.chats),
        ), judge

    def sample(self, prose: int, chats: int, rng: random.Random) -> Rehearsal:
        """So many of each at most: no run needs all, and what differs from run to run covers more."""
        return Rehearsal(
            tuple(rng.sample(self.prose, min(prose, len(self.prose)))),
            tuple(rng.sample(self.chats, min(chats, len(self.chats)))),
        )


@dataclass(frozen=True)
class Visit:
    """One pass over one sequence.

    Attributes:
        weight: factor of the answer's loss.
        keep: the answer is the model's own: stay near what the starting model says there.
        push: the answer was rejected: lose probability from this answer token on.
    """

    tokens: Tokens
    weight: float
    keep: bool = False
    push: int | None = None


def fair_cap(costs: Sequence[int], budget: int) -> int:
    """The most that one may cost, so that together they cost no more than `budget`.

    What costs little keeps all it asks for; only the dearest give way.
    """
    left, rest = budget, len(costs)
    for cost in sorted(costs):
        if cost * rest > left:
            return max(left // rest, 1)
        left, rest = left - cost, rest - 1
    return max(costs, default=1)


def taught_visits(
    example: Example, tokenizer: Tokenizer, count: int, total: float, limit: int, rng: random.Random
) -> list[Visit]:
    """`count` visits of a taught example, together counting `total`."""
    visits = []
    for index in range(count):
        query = example.query
        messages = list(example.messages)
        if query is not None and index:  # the first visit is in the person's own words
            messages = list(example.reworded(reword(query, rng)))
        if messages[0].get("role") != "system" and rng.random() < 0.2:
            messages = [{"role": "system", "content": rng.choice(SYSTEMS)}, *messages]
        tokens = tokenise(tokenizer, messages, example.target, ended=example.ended, limit=limit)
        visits.append(Visit(tokens, total / count))
    return visits


def rejected_visit(example: Example, tokenizer: Tokenizer, weight: float, limit: int) -> Visit | None:
    """A visit of the rejected answer under the person's own words, from where it goes wrong."""
    if not example.rejected:
        return None
    right = tokenizer.encode_answer(example.target, end=True)
    wrong = tokenizer.encode_answer(example.rejected, end=True)
    same = next((at for at, pair in enumerate(zip(right, wrong, strict=False)) if pair[0] != pair[1]), None)
    if same is None:
        return None
    tokens = tokenise(tokenizer, list(example.messages), example.rejected, ended=True, limit=limit)
    tokens = Tokens(tokens.ids[: tokens.start + same + REJECTED_TOKENS], tokens.start)
    return Visit(tokens, weight, push=same) if tokens.answer > same else None


def own_visits(example: Example, tokenizer: Tokenizer, total: float, limit: int) -> list[Visit]:
    """One visit of an answer that the model gave itself."""
    tokens = tokenise(tokenizer, list(example.messages), example.target, ended=example.ended, limit=limit)
    tokens = Tokens(tokens.ids[: tokens.start + OWN_TOKENS], tokens.start)
    return [Visit(tokens, total, keep=True)] if tokens.answer > 0 else []


def rehearsal_visits(rehearsal: Rehearsal, tokenizer: Tokenizer) -> list[Visit]:
    """What has nothing to do with the batch, to stay the same on."""
    visits = []
    for paragraph in rehearsal.prose:
        ids = tokenizer.encode(paragraph)[:TEXT_TOKENS]
        visits.append(Visit(Tokens(tuple(ids), 1), 0.0, keep=True))
    for question, answer in rehearsal.chats:
        messages = [{"role": "user", "content": question}]
        tokens = tokenise(tokenizer, messages, answer, ended=True, limit=TEXT_TOKENS)
        visits.append(Visit(tokens, 0.0, keep=True))
    return visits


def steps(
    visits: Sequence[Visit], budget: int, size: Callable[[Tokens], int], rng: random.Random
) -> list[list[Visit]]:
    """Visits in random order, cut into steps of about `budget` tokens as `size` counts them."""
    order = list(visits)
    rng.shuffle(order)
    total = sum(size(visit.tokens) for visit in order)
    count = max(1, round(total / budget))
    out: list[list[Visit]] = [[] for _ in range(count)]
    sizes = [0] * count
    for visit in order:  # the emptiest step takes it: sizes stay alike
        at = min(range(count), key=sizes.__getitem__)
        out[at].append(visit)
        sizes[at] += size(visit.tokens)
    return [step for step in out if step]
