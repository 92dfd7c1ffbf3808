"""The answer to a request as it grows: one choice or several, each of text and calls."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from appliance.api.tool_calls import CallReader, ToolCall
from appliance.engine.logprobs import TokenLogprob
from appliance.engine.request import Delta


@dataclass(frozen=True)
class Piece:
    """What a delta adds to a choice.

    Attributes:
        text: new text outside calls of tools.
        calls: calls that are complete now, or cut off for good.
        tokens: the tokens behind it, when log probabilities are asked for.
    """

    text: str
    calls: list[ToolCall]
    tokens: tuple[TokenLogprob, ...]
    finish_reason: str | None


@dataclass
class Choice:
    """One of the answers to a request, as it grows.

    Attributes:
        reader: finds calls of tools in it; None when none are offered.
    """

    index: int
    reader: CallReader | None = None
    pieces: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    tokens: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None
    completion_tokens: int = 0

    @property
    def text(self) -> str:
        """All of it so far, without calls."""
        return "".join(self.pieces)

    def add(self, delta: Delta) -> Piece:
        """Take in the next delta.

        A call that repeats an earlier one ends the choice, and is left out: a small model goes on with the
        same call, and clients would do it as often. One that is cut off, and may have become such a
        repeat, is left out too.
        """
        text, repeated = delta.text, False
        calls: list[ToolCall] = []
        if self.reader is not None:
            text, made = self.reader.push(delta.text)
            calls = self._new(made)
            repeated = len(calls) < len(made)
            if delta.finish_reason is not None and not repeated:
                rest, more = self.reader.flush(cut=delta.finish_reason == "length")
                text += rest
                calls += self._new(more, calls)
        self.pieces.append(text)
        self.calls += calls
        self.tokens += delta.tokens
        self.completion_tokens = delta.completion_tokens
        self.finish_reason = delta.finish_reason
        if repeated or (self.calls and delta.finish_reason == "stop"):
            self.finish_reason = "tool_calls"
        return Piece(text, calls, delta.tokens, self.finish_reason)

    def _new(self, calls: list[ToolCall], before: list[ToolCall] | None = None) -> list[ToolCall]:
        """The calls up to the first that was made before in this choice."""
        earlier = [*self.calls, *(before or ())]
        for at, call in enumerate(calls):
            if any(call.repeats(other) for other in [*earlier, *calls[:at]]):
                return calls[:at]
        return calls


@dataclass
class Answer:
    """The answer to a request: one choice or several."""

    id: str
    model: str
    choices: list[Choice]
    created: int = field(default_factory=lambda: int(time.time()))
    prompt_tokens: int = 0
    cached_tokens: int = 0
    adapter: str | None = None

    @property
    def usage(self) -> dict[str, Any]:
        """OpenAI's usage object: the prompt once, the tokens of all choices."""
        completion = sum(choice.completion_tokens for choice in self.choices)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self.prompt_tokens + completion,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }

    @property
    def outcome(self) -> str:
        """How the first choice ended; "cut" when it did not, for its client left or the engine failed."""
        return self.choices[0].finish_reason or "cut"

    def head(self, object_name: str) -> dict[str, Any]:
        """The fields every response and chunk starts with."""
        return {"id": self.id, "object": object_name, "created": self.created, "model": self.model}

    def add(self, index: int, delta: Delta) -> Piece:
        """Take in the next delta of a choice."""
        self.prompt_tokens = delta.prompt_tokens
        if index == 0:
            self.adapter, self.cached_tokens = delta.adapter, delta.cached_tokens
        return self.choices[index].add(delta)
