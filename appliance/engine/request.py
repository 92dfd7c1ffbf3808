"""What crosses the engine's border: a request in, deltas out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from appliance.engine.constraint import Constraint
from appliance.engine.logprobs import TokenLogprob
from appliance.engine.sampling import SamplingParams

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class GenerationRequest:
    """One answer to generate.

    Attributes:
        prompt: token ids, at least one.
        max_tokens: longest answer; cut down to what the context has room for.
        sampling: how to choose tokens.
        stop: strings that end the answer and are not shown.
        logprobs: report each token's log probability and that many likely alternatives; None for neither.
        constraint: the grammar that the answer must follow; None for any text.
        client: who asks; places are shared out fairly among clients, and what was computed for one serves
            no other. Empty for the box itself.
        score_from: generate nothing, and report the log probability of each prompt token from there on.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    constraint: Constraint | None = None
    client: str = ""
    score_from: int | None = None


@dataclass(frozen=True)
class Delta:
    """A piece of an answer.

    Attributes:
        text: new text, possibly empty (a token may end inside a character or a stop string).
        finish_reason: set on the last piece only.
        prompt_tokens: tokens of the prompt.
        completion_tokens: tokens generated so far, the end-of-turn token not counted.
        adapter: the adapter that answers, None for base; the same in every piece of one answer.
        tokens: the tokens generated since the piece before, when their log probabilities are asked for.
            All pieces together have every token once; its text may come earlier, later or, cut off by a
            stop string, never. Of a request with `score_from` they are the prompt's.
        cached_tokens: tokens of the prompt that had been computed before.
    """

    text: str
    finish_reason: FinishReason | None
    prompt_tokens: int
    completion_tokens: int
    adapter: str | None
    tokens: tuple[TokenLogprob, ...] = ()
    cached_tokens: int = 0
