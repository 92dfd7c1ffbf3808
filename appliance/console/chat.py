"""The chat box. With scripts the answer streams; without, the page comes back with it.

What is said here is not collected as it goes by: the owner tries things out. It becomes an example
when the owner rates or corrects it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal

from sanic import Blueprint, HTTPResponse, Request

from appliance.console.render import back, form_field
from appliance.engine.request import Delta, GenerationRequest
from appliance.engine.sampling import SamplingParams
from appliance.errors import ContextOverflow, InvalidRequest, ShammahError

log = logging.getLogger(__name__)

MAX_MESSAGE = 20_000
_ANSWER_ROOM = 64


@dataclass(frozen=True)
class Turn:
    """A question made ready for the model."""

    messages: list[dict[str, Any]]
    request: GenerationRequest


def add_routes(blueprint: Blueprint) -> None:
    """Put `/console/chat` on the blueprint."""
    blueprint.add_route(ask, "/console/chat", methods=["POST"], name="chat")


async def ask(request: Request) -> HTTPResponse | None:
    """Answer a message of the chat box."""
    message, previous = form_field(request, "message"), form_field(request, "previous")
    ctx = request.app.ctx
    if "text/event-stream" not in request.headers.get("accept", ""):
        try:
            turn = await asyncio.to_thread(prepare, ctx, message, previous)
            completion_id = await answer(ctx, turn)
        except ShammahError as error:
            return back(request, error.message, "bad", f"/?chat={previous}#chat" if previous else "/#chat")
        return back(request, to=f"/?chat={completion_id}#chat")
    response = await request.respond(content_type="text/event-stream; charset=utf-8")
    try:
        turn = await asyncio.to_thread(prepare, ctx, message, previous)
        async with aclosing(stream(ctx, turn)) as events:
            async for name, data in events:
                await response.send(f"event: {name}\ndata: {json.dumps(data)}\n\n")
    except Exception as error:  # the status line is out: whatever happens must be said in the stream
        if not isinstance(error, ShammahError):
            log.exception("The chat box failed")
        message = (
            error.message
            if isinstance(error, ShammahError)
            else "The box failed on this one. The log says more."
        )
        await response.send(f"event: problem\ndata: {json.dumps({'message': message})}\n\n")
    await response.eof()
    return None


def prepare(ctx: Any, message: str, previous: str) -> Turn:
    """Put a message after the conversation so far.

    Raises:
        InvalidRequest: nothing was said, or too much.
        ContextOverflow: the conversation is too long for the model.
    """
    if not message:
        raise InvalidRequest("Write a message first.", param="message")
    if len(message) > MAX_MESSAGE:
        raise InvalidRequest(f"That message is longer than {MAX_MESSAGE:,} characters.", param="message")
    before = ctx.store.completions.get(previous) if previous else None
    messages: list[dict[str, Any]] = []
    if before is not None:
        messages = [*before.messages, {"role": "assistant", "content": before.response}]
    messages.append({"role": "user", "content": message})
    prompt = ctx.tokenizer.encode_chat(messages)
    room = ctx.engine.context_length - len(prompt)
    if room < _ANSWER_ROOM:
        raise ContextOverflow("This conversation has become too long for the model. Start a new one.")
    # The same defaults as for devices: the owner sees what they see.
    defaults = ctx.config.model
    sampling = SamplingParams(temperature=defaults.temperature, top_p=defaults.top_p)
    limit = min(room, defaults.default_max_tokens)
    return Turn(messages, GenerationRequest(prompt=tuple(prompt), max_tokens=limit, sampling=sampling))


async def stream(ctx: Any, turn: Turn) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
    """The answer piece by piece, as `text` events and a last `done` with the id to rate it by."""
    pieces: list[str] = []
    last: Delta | None = None
    async with aclosing(ctx.engine.generate(turn.request)) as generation:
        async for delta in generation:
            last = delta
            if delta.text:
                pieces.append(delta.text)
                yield "text", {"text": delta.text}
    completion_id = await asyncio.to_thread(keep, ctx, turn, "".join(pieces), last)
    yield "done", {"id": completion_id}


async def answer(ctx: Any, turn: Turn) -> str:
    """The whole answer at once; returns the id to show and rate it by."""
    completion_id = ""
    async with aclosing(stream(ctx, turn)) as events:
        async for name, data in events:
            if name == "done":
                completion_id = data["id"]
    return completion_id


def keep(ctx: Any, turn: Turn, text: str, last: Delta | None) -> str:
    """Remember a finished answer, so that the owner can rate it and go on from it."""
    completion_id = f"chatcmpl-{secrets.token_hex(12)}"
    reason: Literal["stop", "length"] = "length" if last and last.finish_reason == "length" else "stop"
    ctx.store.completions.record(
        id=completion_id,
        created=time.time(),
        device=None,
        model=ctx.bundle.manifest.name,
        adapter=last.adapter if last else ctx.engine.adapter,
        query=turn.messages[-1]["content"],
        response=text,
        messages=turn.messages,
        finish_reason=reason,
        prompt_tokens=last.prompt_tokens if last else 0,
        completion_tokens=last.completion_tokens if last else 0,
    )
    return completion_id
