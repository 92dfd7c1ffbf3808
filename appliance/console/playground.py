"""The playground: chat with the box. With scripts the answer streams; without, the page comes back with it.

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
from urllib.parse import urlencode

from sanic import Blueprint, HTTPResponse, Request
from sanic.response import html

from appliance.console.render import back, form_field, page, render, wants_fragment
from appliance.engine.request import Delta, GenerationRequest
from appliance.engine.sampling import SamplingParams
from appliance.errors import ContextOverflow, InvalidRequest, NotFound, ShammahError
from appliance.learning.feedback import Feedback, give_feedback
from appliance.store.completions import StoredCompletion
from appliance.store.examples import Example

log = logging.getLogger(__name__)

MAX_MESSAGE = 20_000
_ANSWER_ROOM = 64


_THANKS = {
    "praise": "Noted: more like this.",
    "correction": "Noted: your answer will be learnt in the next run, with high weight.",
    "critique": "Noted: the box drafts a better answer, and asks you to look at it under Needs review.",
}


@dataclass(frozen=True)
class Exchange:
    """An answer of the playground, and what the owner said about it.

    Attributes:
        before: the conversation that led to the question.
        rated: the feedback given on it, newest first to count.
    """

    completion: StoredCompletion
    before: tuple[dict[str, Any], ...]
    rated: Example | None


@dataclass(frozen=True)
class Turn:
    """A question made ready for the model."""

    messages: list[dict[str, Any]]
    request: GenerationRequest


def add_routes(blueprint: Blueprint) -> None:
    """Put `/playground` on the blueprint."""
    blueprint.add_route(show, "/playground", methods=["GET"], name="playground")
    blueprint.add_route(ask, "/playground/ask", methods=["POST"], name="ask")
    blueprint.add_route(feedback, "/playground/feedback", methods=["POST"], name="feedback")
    blueprint.add_route(
        exchange_part, "/playground/exchange/<completion_id:str>", methods=["GET"], name="exchange"
    )


async def show(request: Request) -> HTTPResponse:
    """The page, with the conversation that ends in the answer `?chat=` names."""
    ctx, completion_id = request.app.ctx, request.args.get("chat")
    found = await asyncio.to_thread(exchange, ctx, completion_id) if completion_id else None
    return page(request, "playground.html", section="playground", exchange=found)


async def exchange_part(request: Request, completion_id: str) -> HTTPResponse:
    """One question and answer, with its thumbs."""
    found = await asyncio.to_thread(exchange, request.app.ctx, completion_id)
    if found is None:
        raise NotFound("That answer is not kept any more.")
    return html(render("parts/exchange.html", exchange=found))


async def ask(request: Request) -> HTTPResponse | None:
    """Answer a message."""
    message, previous = form_field(request, "message"), form_field(request, "previous")
    ctx = request.app.ctx
    if "text/event-stream" not in request.headers.get("accept", ""):
        try:
            turn = await asyncio.to_thread(prepare, ctx, message, previous)
            completion_id = await answer(ctx, turn)
        except ShammahError as error:
            return back(request, error.message, "bad", _address(previous))
        return back(request, to=_address(completion_id))
    response = await request.respond(content_type="text/event-stream; charset=utf-8")
    try:
        turn = await asyncio.to_thread(prepare, ctx, message, previous)
        async with aclosing(stream(ctx, turn)) as events:
            async for name, data in events:
                await response.send(f"event: {name}\ndata: {json.dumps(data)}\n\n")
    except Exception as error:  # the status line is out: whatever happens must be said in the stream
        if not isinstance(error, ShammahError):
            log.exception("The playground failed")
        message = (
            error.message
            if isinstance(error, ShammahError)
            else "The box failed on this one. The log says more."
        )
        await response.send(f"event: problem\ndata: {json.dumps({'message': message})}\n\n")
    await response.eof()
    return None


async def feedback(request: Request) -> HTTPResponse:
    """Thumbs, a correction or a note on an answer."""
    ctx = request.app.ctx
    completion_id = form_field(request, "completion_id")
    to = _address(completion_id)
    try:
        completion = await asyncio.to_thread(ctx.store.completions.get, completion_id)
        if completion is None:
            raise NotFound("That answer is not kept any more, so it cannot be rated.")
        correction, note, rating = (form_field(request, name) for name in ("correction", "note", "rating"))
        if rating != "up" and not correction and not note:
            raise InvalidRequest("Say what the answer should have been, or what is wrong with it.")
        given = Feedback(
            query=completion.query,
            response=completion.response,
            weight="normal" if rating == "up" else "high",
            feedback=note or None,
            correction=correction or None,
            rating="up" if rating == "up" else "down",
            completion_id=completion_id,
            device=None,
            source="console",
        )
        example = await asyncio.to_thread(give_feedback, ctx.store, ctx.config, given, events=ctx.events)
    except ShammahError as error:
        if wants_fragment(request):
            return html(render("parts/rated.html", problem=error.message, kind=None))
        return back(request, error.message, "bad", to)
    if wants_fragment(request):
        return html(render("parts/rated.html", problem=None, kind=example.kind))
    return back(request, _THANKS[example.kind], to=to)


def exchange(ctx: Any, completion_id: str) -> Exchange | None:
    """An earlier answer; None when it is not kept any more. Blocking."""
    found: StoredCompletion | None = ctx.store.completions.get(completion_id)
    if found is None:
        return None
    rated = ctx.store.examples.feedback_on(found.id, found.query, found.response)
    return Exchange(found, tuple(found.messages[:-1]), rated)


def _address(completion_id: str) -> str:
    return f"/playground?{urlencode({'chat': completion_id})}" if completion_id else "/playground"


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
