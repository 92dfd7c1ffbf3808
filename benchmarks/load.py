"""Load on an OpenAI server: prompts of a known length, streamed answers, and when their pieces arrived.

The client is a bare socket that looks at an answer only when it is complete: it shares the cores with
the server it measures, and should take as little of them as it can. Tokens are the server's own
count (`usage`); a gap is the time between two pieces of text, as a reader sees them.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

ANSWER_SECONDS = 300.0
LINE_BYTES = 2**20
# A plain continuation of this does not end early, so that a client decodes for the whole measurement.
STORY = ". Once upon a time in a village by the sea there lived an old clockmaker. Every day he"
WORDS = (
    "the house has a garden with old trees and in spring people come from the town to look at them while "
    "children play near water under light wind long before night we talk about work food music books snow"
)

Message = dict[str, str]


class LoadError(Exception):
    """The server did not answer as an OpenAI server does."""


@dataclass
class Answer:
    """One answer as its client saw it: every line of the stream with its time of arrival."""

    sent: float = 0.0
    lines: list[tuple[float, bytes]] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    _arrivals: list[float] = field(default_factory=list)
    _parsed: int = 0

    @property
    def arrivals(self) -> list[float]:
        """When pieces of text arrived. Pieces without text (role, end, half a character) do not count."""
        for at, line in self.lines[self._parsed :]:
            self._take(at, line)
        self._parsed = len(self.lines)
        return self._arrivals

    @property
    def first(self) -> float:
        """Seconds to the first piece."""
        if not self.arrivals:
            raise LoadError("The answer is empty.")
        return self.arrivals[0] - self.sent

    @property
    def decode(self) -> float:
        """Tokens a second after the first."""
        if len(self.arrivals) < 2:
            raise LoadError("The answer is too short to time.")
        return (self.completion_tokens - 1) / (self.arrivals[-1] - self.arrivals[0])

    def gaps(self, begin: float = -math.inf, end: float = math.inf) -> list[float]:
        """Seconds between neighbouring pieces, of the gaps that touch the time from `begin` to `end`."""
        pairs = zip(self.arrivals, self.arrivals[1:], strict=False)
        return [after - before for before, after in pairs if before < end and after > begin]

    def _take(self, at: float, line: bytes) -> None:
        event = json.loads(line)
        if "error" in event:
            raise LoadError(f"The answer ended with an error: {line.decode(errors='replace')[:300]}")
        if usage := event.get("usage"):
            self.prompt_tokens = usage["prompt_tokens"]
            self.completion_tokens = usage["completion_tokens"]
        for choice in event.get("choices", ()):
            if choice.get("text") or choice.get("delta", {}).get("content"):
                self._arrivals.append(at)


@dataclass(frozen=True)
class Endpoint:
    """A server on loopback.

    Attributes:
        port: where it listens.
        model: the name it wants to be called.
        extra: fields of its own for every request.
    """

    port: int
    model: str
    extra: dict[str, Any] = field(default_factory=dict)

    async def complete(self, prompt: str, tokens: int, into: Answer | None = None) -> Answer:
        """Continue a text."""
        return await self._ask("/v1/completions", {"prompt": prompt}, tokens, into)

    async def chat(self, messages: list[Message], tokens: int) -> Answer:
        """Answer a conversation."""
        return await self._ask("/v1/chat/completions", {"messages": messages}, tokens, None)

    async def _ask(self, path: str, what: dict[str, Any], tokens: int, into: Answer | None) -> Answer:
        body = {
            "model": self.model,
            **what,
            "max_tokens": tokens,
            "temperature": 1.0,
            "top_p": 1.0,
            "seed": 7,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.extra,
        }
        payload = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(payload)}\r\nConnection: close\r\n\r\n"
        )
        answer = into if into is not None else Answer()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._exchange(head.encode() + payload, answer)
        except TimeoutError as error:
            raise LoadError(f"No end of the answer in {ANSWER_SECONDS:.0f} s.") from error
        if not answer.arrivals and not answer.completion_tokens:
            raise LoadError("The answer ended before it began.")
        return answer

    async def _exchange(self, request: bytes, answer: Answer) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=LINE_BYTES)
        try:
            answer.sent = time.perf_counter()
            writer.write(request)
            await writer.drain()
            await _read(reader, answer)
        finally:
            # Closing in the middle of an answer is how a client stops one.
            writer.close()


async def _read(reader: asyncio.StreamReader, answer: Answer) -> None:
    status = await reader.readline()
    if b" 200 " not in status:
        rest = await reader.read(2000)
        raise LoadError(f"{status.decode(errors='replace').strip()}: {rest.decode(errors='replace')[-500:]}")
    # Events are whole lines in every server here, so the chunks' framing can be skipped like the headers.
    while line := await reader.readline():
        if line.startswith(b"data: {"):
            answer.lines.append((time.perf_counter(), line[6:]))
        elif line.startswith(b"data: [DONE]"):
            return


class Prompts:
    """Texts of an exact length in tokens that no cache has seen: they begin with random words."""

    def __init__(self, count: Callable[[str], int]) -> None:
        self._count = count
        self._words = [word for word in WORDS.split() if count(f"a {word}") == count("a") + 1]
        self._random = random.Random(secrets.token_bytes(8))

    def text(self, tokens: int, end: str = "") -> str:
        """Random words, then `end`; `tokens` in all (or as many as `end` has, if those are more)."""
        words = self._random.choices(self._words, k=max(0, tokens - self._count(end)))
        while words and self._count(" ".join(words) + end) > tokens:
            words.pop()
        while self._count(" ".join(words) + end) < tokens:
            words.append(self._random.choice(self._words))
        return " ".join(words) + end

    def story(self, tokens: int) -> str:
        """A text whose continuation goes on for long."""
        return self.text(tokens, STORY)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of the values do not exceed (nearest rank)."""
    if not values:
        raise LoadError("Nothing was measured.")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
