"""From a request body to an answer, and from an answer to the collector: what both endpoints share."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from sanic import Request

from appliance.api.auth import device_of
from appliance.api.errors import error_object
from appliance.api.schemas import GenerationBody
from appliance.engine.engine import Generation
from appliance.engine.request import Delta, FinishReason, GenerationRequest
from appliance.engine.sampling import SamplingParams
from appliance.errors import NotFound, ShammahError
from appliance.learning.collector import CollectedExchange

ALIAS = "shammah"
"""The model's name for clients that should not care which model the box runs."""
PING_SECONDS = 10.0
"""A comment is sent this often while nothing else is: proxies and clients drop silent streams."""


@dataclass
class Answer:
    """An answer as it grows."""

    id: str
    model: str
    created: int = field(default_factory=lambda: int(time.time()))
    pieces: list[str] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    adapter: str | None = None

    @property
    def text(self) -> str:
        """All of it so far."""
        return "".join(self.pieces)

    @property
    def usage(self) -> dict[str, int]:
        """OpenAI's usage object."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }

    def head(self, object_name: str) -> dict[str, Any]:
        """The fields every response and chunk starts with."""
        return {"id": self.id, "object": object_name, "created": self.created, "model": self.model}

    def add(self, delta: Delta) -> None:
        """Take in the next piece."""
        self.pieces.append(delta.text)
        self.finish_reason = delta.finish_reason
        self.prompt_tokens = delta.prompt_tokens
        self.completion_tokens = delta.completion_tokens
        self.adapter = delta.adapter


def served_names(request: Request) -> tuple[str, ...]:
    """The model names a request may use."""
    return (ALIAS, request.app.ctx.bundle.manifest.name)


def check_model(request: Request, name: str) -> None:
    """Refuse a model that is not served here.

    Raises:
        NotFound: with the names that are.
    """
    names = served_names(request)
    if name not in names:
        raise NotFound(
            f"The model {name!r} does not exist here. Use {' or '.join(repr(known) for known in names)}.",
            param="model",
            code="model_not_found",
        )


def begin(
    request: Request, body: GenerationBody, prompt: list[int], max_tokens: int | None, prefix: str
) -> tuple[Generation, Answer]:
    """Queue the request with the engine; errors come before anything is sent."""
    defaults = request.app.ctx.config.model
    sampling = SamplingParams(
        temperature=defaults.temperature if body.temperature is None else body.temperature,
        top_p=defaults.top_p if body.top_p is None else body.top_p,
        top_k=body.top_k or 0,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        seed=body.seed,
    )
    generation = request.app.ctx.engine.generate(
        GenerationRequest(tuple(prompt), max_tokens or defaults.default_max_tokens, sampling, body.stops)
    )
    return generation, Answer(f"{prefix}-{secrets.token_hex(12)}", body.model)


async def finish(generation: Generation, answer: Answer) -> None:
    """Run an answer to its end. Being cancelled (the client left) stops the engine too."""
    async with aclosing(generation):
        async for delta in generation:
            answer.add(delta)


async def stream(
    request: Request,
    generation: Generation,
    answer: Answer,
    chunks: Callable[[Delta], list[dict[str, Any]]],
    usage_head: Callable[[], dict[str, Any]] | None,
    done: Callable[[], None],
) -> None:
    """Send an answer as server-sent events while it is generated.

    Args:
        request: the request to respond to.
        generation: the answer under way.
        answer: where its pieces are gathered.
        chunks: the JSON objects to send for a delta.
        usage_head: the fields of a last chunk with `usage` and no choices, when one is asked for.
        done: called when the answer is complete, even if the client is gone by then.
    """
    async with aclosing(generation):
        response = await request.respond(
            content_type="text/event-stream; charset=utf-8",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )
        assert response is not None
        try:
            async for delta in _with_pings(generation):
                if delta is None:
                    await response.send(": waiting\n\n")
                    continue
                answer.add(delta)
                if delta.finish_reason:
                    done()
                for chunk in chunks(delta):
                    await response.send(_event(chunk))
            if usage_head is not None:
                await response.send(_event({**usage_head(), "choices": [], "usage": answer.usage}))
            await response.send("data: [DONE]\n\n")
        except ShammahError as error:  # the status line is out: the error goes into the stream
            await response.send(_event(error_object(error)[1]))
        await response.eof()


def collect(
    request: Request, body: GenerationBody, answer: Answer, messages: list[dict[str, Any]] | None
) -> None:
    """Hand a complete answer to the collector; costs no waiting. Plain completions have no messages."""
    assert answer.finish_reason is not None
    device = device_of(request)
    users = [message["content"] for message in messages or [] if message["role"] == "user"]
    request.app.ctx.collector.collect(
        CollectedExchange(
            completion_id=answer.id,
            messages=messages or [],
            query=users[-1] if users else "",
            response=answer.text,
            finish_reason=answer.finish_reason,
            device=device.id if device else None,
            model=answer.model,
            adapter=answer.adapter,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            store=body.store is not False and (device is None or device.collect) and bool(users),
            internal=False,
        )
    )


async def _with_pings(generation: Generation) -> AsyncIterator[Delta | None]:
    """The deltas, and None after each `PING_SECONDS` without one."""
    while True:
        try:
            yield await asyncio.wait_for(anext(generation), PING_SECONDS)
        except TimeoutError:
            yield None
        except StopAsyncIteration:
            return


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"
