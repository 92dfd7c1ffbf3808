"""From a request body to an answer, and from an answer to the collector: what both endpoints share."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from typing import Any

from sanic import Request

from appliance.api.answer import Answer, Choice, Piece
from appliance.api.auth import device_of
from appliance.api.choices import Choices
from appliance.api.errors import error_object
from appliance.api.schemas import GenerationBody
from appliance.api.tool_calls import CallReader
from appliance.api.weights import find_weights, in_service
from appliance.engine.constraint import Constraint
from appliance.engine.engine import Generation
from appliance.engine.request import Delta, GenerationRequest
from appliance.engine.sampling import SamplingParams
from appliance.errors import InvalidRequest, ShammahError
from appliance.learning.collector import CollectedExchange

PING_SECONDS = 10.0
"""A comment is sent this often while nothing else is: proxies and clients drop silent streams."""
_PLAIN = {"top_k": 0.0, "min_p": 0.0, "repetition_penalty": 1.0}
"""How is sampled what neither request nor model wants otherwise."""


async def begin(
    request: Request,
    body: GenerationBody,
    prompt: list[int],
    prefix: str,
    *,
    max_tokens: int | None,
    logprobs: int | None = None,
    constraint: Constraint | None = None,
    reader: Callable[[], CallReader] | None = None,
) -> tuple[Choices, Answer]:
    """Queue the request with the engine; errors come before anything is sent.

    Args:
        request: the HTTP request.
        body: what it asks for.
        prompt: the prompt's tokens.
        prefix: of the answer's id.
        max_tokens: longest answer; None for the configured length.
        logprobs: report tokens with that many alternatives; None for neither.
        constraint: the grammar to follow.
        reader: makes what finds calls of tools in a choice; None when there can be none.

    Raises:
        InvalidRequest: a token of `logit_bias` does not exist, or the engine refuses the prompt.
        Busy: too many requests wait already.
        NotFound: no weights are called what the body names as its model.
        Forbidden: the device may not use these.
    """
    engine, defaults = request.app.ctx.engine, request.app.ctx.config.model
    device = device_of(request)
    count = body.n or 1
    asked = GenerationRequest(
        tuple(prompt),
        max_tokens or defaults.default_max_tokens,
        _sampling(request, body),
        body.stops,
        logprobs=logprobs,
        constraint=constraint,
        client=device.id if device else request.ip,
    )
    weights = await find_weights(request, body.model, f"{asked.client}\0{body.opening}")
    if count > 1:
        weights = weights or engine.weights  # a switch between two choices must not tell them apart
    generations: list[Generation] = []
    try:
        for index in range(count):
            generations.append(engine.generate(_nth(asked, index), weights))
    except ShammahError:
        for generation in generations:
            await generation.aclose()
        raise
    choices = [Choice(index, reader() if reader else None) for index in range(count)]
    request.ctx.answer = answer = Answer(f"{prefix}-{secrets.token_hex(12)}", body.model, choices)
    return Choices(generations), answer


async def finish(request: Request, choices: Choices, answer: Answer) -> None:
    """Run an answer to its end. Being cancelled (the client left) stops the engine too."""
    ctx, device = request.app.ctx, device_of(request)
    with ctx.meter.answering(device, answer):
        async with aclosing(choices), ctx.running.answering(device):
            async for index, delta in choices:
                if answer.add(index, delta).finish_reason:
                    await choices.end(index)


async def stream(
    request: Request,
    choices: Choices,
    answer: Answer,
    chunks: Callable[[Choice, Piece], list[dict[str, Any]]],
    usage_head: Callable[[], dict[str, Any]] | None,
    done: Callable[[], None],
) -> None:
    """Send an answer as server-sent events while it is generated.

    Args:
        request: the request to respond to.
        choices: the answer under way.
        answer: where its pieces are gathered.
        chunks: the JSON objects to send for a piece of a choice.
        usage_head: the fields of a last chunk with `usage` and no choices, when one is asked for.
        done: called when the first choice is complete, even if the client is gone by then.
    """
    async with AsyncExitStack() as ends:
        ends.enter_context(request.app.ctx.meter.answering(device_of(request), answer))
        await ends.enter_async_context(aclosing(choices))
        response = await request.respond(
            content_type="text/event-stream; charset=utf-8",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )
        assert response is not None
        try:
            async with request.app.ctx.running.answering(device_of(request)):
                async for item in _with_pings(choices):
                    if item is None:
                        await response.send(": waiting\n\n")
                        continue
                    index, delta = item
                    piece = answer.add(index, delta)
                    if piece.finish_reason:
                        await choices.end(index)
                    if index == 0 and piece.finish_reason:
                        done()
                    for chunk in chunks(answer.choices[index], piece):
                        await response.send(_event(chunk))
            if usage_head is not None:
                await response.send(_event({**usage_head(), "choices": [], "usage": answer.usage}))
            await response.send("data: [DONE]\n\n")
        except ShammahError as error:  # the status line is out: the error goes into the stream
            await response.send(_event(error_object(error)[1]))
        await response.eof()


def collect(
    request: Request,
    body: GenerationBody,
    answer: Answer,
    messages: list[dict[str, Any]] | None,
    with_tools: bool = False,
    forced: bool = False,
) -> None:
    """Hand the first choice, complete, to the collector; costs no waiting.

    Args:
        request: the HTTP request.
        body: what it asked for.
        answer: what it got.
        messages: the conversation; None for a plain completion.
        with_tools: whether tools were called earlier in it.
        forced: whether the answer had to have a form.
    """
    choice = answer.choices[0]
    assert choice.finish_reason is not None
    device = device_of(request)
    users = [message["content"] for message in messages or [] if message["role"] == "user"]
    request.app.ctx.collector.collect(
        CollectedExchange(
            completion_id=answer.id,
            messages=messages or [],
            query=users[-1] if users else "",
            response=choice.text,
            finish_reason=choice.finish_reason,
            device=device.id if device else None,
            model=answer.model,
            adapter=answer.adapter,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=choice.completion_tokens,
            store=_collected(request, body) and (device is None or device.collect) and bool(users),
            internal=False,
            with_tools=with_tools or bool(choice.calls),
            task=body.task,
            forced=forced,
        )
    )


def _collected(request: Request, body: GenerationBody) -> bool:
    """Asking particular weights is trying them out; what they say is not how the box answers."""
    return body.store is not False and in_service(request, body.model)


def _sampling(request: Request, body: GenerationBody) -> SamplingParams:
    defaults = request.app.ctx.config.model
    bias = tuple((int(ident), value) for ident, value in (body.logit_bias or {}).items())
    size = request.app.ctx.bundle.manifest.vocab_size
    if unknown := [ident for ident, _ in bias if ident >= size]:
        raise InvalidRequest(
            f"logit_bias: there is no token {unknown[0]}; this model's end at {size - 1}.",
            param="logit_bias",
            code="invalid_value",
        )
    # What the request says counts, then what the owner set, then what the model's files say, then ours.
    own = {**_PLAIN, "temperature": defaults.temperature, "top_p": defaults.top_p}
    hints = request.app.ctx.bundle.manifest.sampling.items()
    own |= {key: value for key, value in hints if key in own and key not in defaults.model_fields_set}
    wanted = {key: value if (said := getattr(body, key)) is None else said for key, value in own.items()}
    return SamplingParams(
        temperature=wanted["temperature"],
        top_p=wanted["top_p"],
        top_k=int(wanted["top_k"]),
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        seed=body.seed,
        min_p=wanted["min_p"],
        repetition_penalty=wanted["repetition_penalty"],
        logit_bias=bias,
    )


def _nth(request: GenerationRequest, index: int) -> GenerationRequest:
    """The request for choice `index`: a seed gives choices that differ, and the first is as if alone."""
    seed = request.sampling.seed
    if seed is None or index == 0:
        return request
    return replace(request, sampling=replace(request.sampling, seed=seed + index))


async def _with_pings(choices: Choices) -> AsyncIterator[tuple[int, Delta] | None]:
    """The deltas with their choices' indices, and None after each `PING_SECONDS` without one."""
    while True:
        try:
            async with asyncio.timeout(PING_SECONDS):  # `wait_for` would make a task for every token
                item = await anext(choices)
        except TimeoutError:
            yield None
        except StopAsyncIteration:
            return
        else:
            yield item


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"
